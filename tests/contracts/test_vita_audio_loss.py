"""VITA-Audio's training loss: its value sample by sample, and where its gradient goes."""

from pathlib import Path

import pytest
import torch

from elocute.models.vita import is_mtp, load_network, training_loss
from tests.contracts import vita_audio
from tests.contracts.vita_naive import NaiveVita

POSITIONS = torch.tensor([[*range(9), *range(7)], [*range(3), *range(2), *range(11)]])


@pytest.fixture(scope="module")
def boost(tmp_path_factory) -> Path:
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "boost", n_units=40)


@pytest.fixture(scope="module")
def plus(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus", n_units=40)


def packed(prompts: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [2, 16]; with `prompts` the first four of every sequence carry no label, else all do."""
    ids = torch.randint(0, 330, (2, 16), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    if prompts:
        labels[POSITIONS < 4] = -100
    return ids, labels


def cross_entropy(logits: torch.Tensor, labels: list[int]) -> list[float]:
    logp = logits.log_softmax(-1)
    return [-logp[row, label].item() for row, label in enumerate(labels) if label != -100]


def naive_loss(naive: NaiveVita, ids, labels, crossing: bool):
    """(main, [depths]): by sequence; `crossing`: the last state of one is asked for the first token of the next."""
    losses = [[] for _ in range(naive.n_mtp + 1)]
    sequences = []
    for row in range(len(ids)):
        starts = (POSITIONS[row] == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
            sequences.append((row, ids[row, start:stop], labels[row, start:stop].tolist()))
    said = [naive.states(tokens) for _, tokens, _ in sequences]
    for depth in range(naive.n_mtp + 1):
        there = [index for index, (_, tokens, _) in enumerate(sequences) if len(tokens) > depth]
        for place, index in enumerate(there):
            row, _, own = sequences[index]
            logits = naive.logits(said[index][depth])
            wanted = own[depth + 1 :]
            following = there[place + 1] if place + 1 < len(there) else None
            if crossing and following is not None and (depth > 0 or sequences[following][0] == row):
                wanted = [*wanted, sequences[following][2][depth]]
            losses[depth] += cross_entropy(logits, wanted)
    main, *ahead = [sum(part) / len(part) for part in losses]
    return main, ahead


@pytest.mark.parametrize("prompts", [True, False])
def test_the_loss_is_that_of_its_sequences(boost, prompts):
    """Labels on a sequence's first tokens are asked of the one before it, as the original does."""
    network, (ids, labels) = load_network(boost), packed(prompts)
    loss = training_loss(network, ids, labels, POSITIONS)
    main, ahead = naive_loss(NaiveVita(boost, main=2), ids, labels, crossing=not prompts)
    assert loss.main.item() == pytest.approx(main, abs=2e-5)
    assert [part.item() for part in loss.depths] == pytest.approx(ahead, abs=2e-5)
    assert loss.total.item() == pytest.approx(main + 0.5 / 3 * sum(ahead), abs=2e-5)  # mtp_loss_weight 0.5


def test_without_labels_on_prompts_packed_is_unpacked(boost):
    network, (ids, labels) = load_network(boost), packed(prompts=True)
    packed_loss = training_loss(network, ids, labels, POSITIONS)
    longest, rows = 11, []
    for row in range(2):
        starts = (POSITIONS[row] == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], 16], strict=True):
            pad = (0, longest - (stop - start))
            one_ids = torch.nn.functional.pad(ids[row, start:stop], pad, value=7)
            one_labels = torch.nn.functional.pad(labels[row, start:stop], pad, value=-100)
            rows.append((one_ids, one_labels))
    ids, labels = (torch.stack(part) for part in zip(*rows, strict=True))
    alone = training_loss(network, ids, labels, torch.arange(longest).expand(len(ids), -1))
    torch.testing.assert_close(packed_loss.total, alone.total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed_loss.depths, alone.depths, atol=1e-5, rtol=1e-5)


def gradients(network, **how) -> dict[str, torch.Tensor]:
    ids, labels = packed(prompts=True)
    network.zero_grad()
    training_loss(network, ids, labels, POSITIONS, **how).total.backward()
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def test_a_frozen_head_leaves_the_main_loss_out(boost):
    network, (ids, labels) = load_network(boost), packed(prompts=True)
    both = training_loss(network, ids, labels, POSITIONS)
    network.lm_head.requires_grad_(False)
    loss = training_loss(network, ids, labels, POSITIONS)
    torch.testing.assert_close(loss.total, both.total - both.main)
    torch.testing.assert_close(loss.main, both.main)


def test_a_frozen_head_stops_the_depths_gradient_before_the_llm(boost):
    network = load_network(boost)
    network.lm_head.requires_grad_(False)
    moved = gradients(network)
    nonzero = {name for name, gradient in moved.items() if gradient.any()}
    assert {name for name in nonzero if not is_mtp(name, 2)} == {"model.norm.weight"}  # which the depths share
    assert all(f"model.layers.{layer}.mlp.up_proj.weight" in nonzero for layer in (2, 3, 4))


def test_plus_always_stops_it_and_boost_with_a_trained_head_does_not(boost, plus):
    """Between depths nothing stops it: the first learns from the last's loss."""
    for folder, stops in ((boost, False), (plus, True)):
        network = load_network(folder)
        found = gradients(network)["model.layers.0.mlp.up_proj.weight"]
        kept, stopped = (
            gradients(network, detach=detach)["model.layers.0.mlp.up_proj.weight"] for detach in (False, True)
        )
        assert not torch.allclose(kept, stopped, atol=1e-7)
        torch.testing.assert_close(found, stopped if stops else kept)


def test_the_last_depths_loss_moves_the_first(boost):
    network, (ids, labels) = load_network(boost), packed(prompts=True)
    network.zero_grad()
    training_loss(network, ids, labels, POSITIONS, detach=True).depths[-1].backward()
    assert network.model.layers[2].mlp.up_proj.weight.grad.any()
    assert network.model.layers[1].mlp.up_proj.weight.grad is None


def test_nothing_labelled_is_nothing_learnt(boost):
    network, (ids, labels) = load_network(boost), packed(prompts=True)
    loss = training_loss(network, ids, torch.full_like(labels, -100), POSITIONS)
    assert loss.total.item() == 0
    loss.total.backward()
    assert not any(each.grad is not None and each.grad.any() for each in network.parameters())


def test_sequences_too_short_for_a_depth_are_left_out_of_it(boost):
    network, (ids, labels) = load_network(boost), packed(prompts=False)
    loss = training_loss(network, ids[:, :4], labels[:, :4], torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]]))
    assert loss.depths[0].item() > 0 and loss.depths[2].item() == 0
    assert loss.total.isfinite()
