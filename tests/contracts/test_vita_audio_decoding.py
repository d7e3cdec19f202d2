"""Sampling with multi-token prediction: the schedule, and caches that say what the whole sequence says."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.models.vita import Decoding, deepest_of, depths_of, load_network, said_by
from tests.contracts import vita_audio
from tests.contracts.vita_naive import NaiveVita

MODES = [[8192, 0], [1, 3], [1, 2, 2, 3], [1, 4, 3, 8, 4, 10], [1, 10, 4, 10], [1, 10], [3, 0, 0, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "boost", n_units=40)


@pytest.fixture(scope="module")
def network(folder):
    return load_network(folder)


@pytest.fixture(scope="module")
def naive(folder) -> NaiveVita:
    return NaiveVita(folder, main=2)


def first(mode, n_mtp: int, count: int) -> list[int]:
    return list(islice(depths_of(mode, n_mtp), count))


def letters(mode, count: int) -> str:
    """The schedule written out: M a step of the main layers, m one of a depth."""
    schedule, pairs = "", list(zip(mode[::2], mode[1::2], strict=True))
    while len(schedule) < count:
        main, ahead = pairs.pop(0) if len(pairs) > 1 else pairs[0]
        schedule += "M" * main + "m" * ahead
    return schedule[:count]


def naive_answer(naive: NaiveVita, prompt: torch.Tensor, mode, count: int, start=None):
    """Greedy, every token from the whole sequence anew. Returns ids and the logits they were taken from."""
    ids, k, chosen = prompt, 0, []
    for letter in letters(mode, count):
        embeds = None if start is None else torch.cat([start, naive.embed(ids[len(start) :])])
        states = naive.states(ids, embeds)
        if letter == "m" and k < naive.n_mtp:
            hidden, k = states[k + 1][-1], k + 1
        else:
            hidden, k = states[0][-1], 0
        chosen.append(naive.logits(hidden))
        ids = torch.cat([ids, chosen[-1].argmax()[None]])
    return ids[len(prompt) :], torch.stack(chosen)


@torch.no_grad()
def answer(network, prompts: torch.Tensor, mode, count: int, **how):
    """Greedy on caches: ids [B, count], logits [B, count, V], depths."""
    decoding = Decoding(network, mode)
    hidden, ids, chosen, depths = decoding.prefill(prompts, **how), [], [], []
    for step in range(count):
        depths.append(decoding.depth)
        chosen.append(network.lm_head(hidden))
        ids.append(chosen[-1].argmax(-1))
        if step + 1 < count:
            hidden = decoding.step(ids[-1])
    return torch.stack(ids, 1), torch.stack(chosen, 1), depths


def prompt(*shape: int) -> torch.Tensor:
    return torch.randint(0, 330, shape, generator=torch.Generator().manual_seed(3))


# the schedule


def test_the_schedule_of_boost():
    """One from the main head, then a chunk of ten, then four and ten: the training ratio."""
    assert first([1, 10, 4, 10], 10, 29) == [0, *range(1, 11), 0, 0, 0, 0, *range(1, 11), 0, 0, 0, 0]


def test_a_run_longer_than_there_are_depths_falls_back_to_the_main_head():
    assert first([1, 6], 2, 9) == [0, 1, 2, 0, 1, 2, 0, 0, 1]
    assert first([1, 6], 0, 9) == [0] * 9


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=3).filter(
        lambda pairs: pairs[0][0] > 0 and sum(pairs[-1]) > 0
    ),
    st.integers(0, 4),
)
def test_a_schedule_is_its_letters(pairs, n_mtp):
    mode, k, expected = [count for pair in pairs for count in pair], 0, []
    for letter in letters(mode, 30):
        k = k + 1 if letter == "m" and k < n_mtp else 0
        expected.append(k)
    assert first(mode, n_mtp, 30) == expected


@pytest.mark.parametrize(
    ("mode", "n_mtp", "deepest"),
    [
        ([8192, 0], 10, 0),
        ([1, 10], 10, 10),
        ([1, 2, 3, 4], 10, 4),
        ([1, 4], 2, 2),
        ([1, 0, 0, 2], 10, 10),
        ([1, 3], 0, 0),
    ],
)
def test_the_deepest_depth_that_is_ever_asked(mode, n_mtp, deepest):
    assert deepest_of(mode, n_mtp) == deepest == max(first(mode, n_mtp, 20000))


@pytest.mark.parametrize("mode", [[], [1], [1, 2, 3], [0, 4], [1, -1], [1, 2, 0, 0]])
def test_what_is_no_schedule_is_refused(mode):
    with pytest.raises(InputError, match="mtp_inference_mode"):
        first(mode, 2, 1)


# the caches


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_cached_decoding_says_what_the_equations_say(network, naive, mode):
    ids, logits, depths = answer(network, prompt(1, 7), mode, 24)
    expected, said = naive_answer(naive, prompt(1, 7)[0], mode, 24)
    assert ids[0].tolist() == expected.tolist()
    torch.testing.assert_close(logits[0].double(), said, atol=5e-5, rtol=1e-5)
    assert depths == first(mode, 3, 24)


def test_only_the_main_head_is_a_plain_causal_lm(network):
    """Mode [8192, 0]; the same as transformers' own generate."""
    ids, _, _ = answer(network, prompt(1, 7), [8192, 0], 12)
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    whole = network.generate(prompt(1, 7), attention_mask=torch.ones(1, 7, dtype=torch.long), **settings)
    assert whole[0, 7:].tolist() == ids[0].tolist()


@pytest.mark.parametrize("mode", MODES[1:4], ids=str)
def test_a_prompt_shorter_than_the_depths_is_read(network, naive, mode):
    ids, _, _ = answer(network, prompt(1, 1), mode, 12)
    assert ids[0].tolist() == naive_answer(naive, prompt(1, 1)[0], mode, 12)[0].tolist()


@pytest.mark.parametrize("mode", MODES[:4], ids=str)
def test_a_scored_answer_is_the_sampled_one(network, mode):
    """One pass over prompt and answer gives the states that said it."""
    prompts = prompt(3, 6)
    ids, logits, depths = answer(network, prompts, mode, 15)
    whole = torch.cat([prompts, ids], 1)
    states = network.depths(whole, network.model(whole).last_hidden_state)
    torch.testing.assert_close(network.lm_head(said_by(states, depths, 6)), logits, atol=1e-5, rtol=1e-5)


def test_a_state_before_the_start_is_refused(network):
    states = network.depths(prompt(1, 6), network.model(prompt(1, 6)).last_hidden_state)
    with pytest.raises(ValueError, match="before the start"):
        said_by(states, [0, 1, 2], start=0)


@pytest.mark.parametrize("mode", MODES[1:4], ids=str)
def test_prompts_padded_on_the_left_are_as_alone(network, mode):
    prompts, mask = prompt(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, :8] = 0
    ids, logits, _ = answer(network, prompts, mode, 14, attention_mask=mask)
    for row, length in enumerate((9, 5, 1)):
        alone, said, _ = answer(network, prompts[row : row + 1, -length:], mode, 14)
        assert ids[row].tolist() == alone[0].tolist()
        torch.testing.assert_close(logits[row], said[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES[1:3], ids=str)
def test_rows_are_doubled_and_leave(network, mode):
    """A group shares its prompt's caches; a row that has ended leaves, the others go on as if alone."""
    prompts, tokens = prompt(2, 6), prompt(4, 12) // 2
    decoding = Decoding(network, mode)
    with torch.no_grad():
        found = [decoding.prefill(prompts).repeat_interleave(2, 0)]
        decoding.repeat(2)
        rows = torch.arange(4)
        for step in range(12):
            if step in (3, 7):
                kept = torch.tensor([0, 2, 3] if step == 3 else [1, 2])
                decoding.keep(kept)
                rows = rows[kept]
            found.append(decoding.step(tokens[rows, step]))
        assert rows.tolist() == [2, 3]
        for row in (2, 3):
            alone = Decoding(network, mode)
            expected = [alone.prefill(prompts[row // 2 : row // 2 + 1])]
            expected += [alone.step(tokens[row : row + 1, step]) for step in range(12)]
            for step, (batch, one) in enumerate(zip(found, expected, strict=True)):
                place = row if step < 4 else row - 1 if step < 8 else row - 2
                torch.testing.assert_close(batch[place], one[0], atol=1e-5, rtol=1e-5)


def test_heard_audio_is_in_the_main_layers_cache_and_in_no_depths(network, naive):
    ids = prompt(1, 8)
    embeds = network.model.embed_tokens(ids).detach().clone()
    embeds[:, 2:6] = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
    found, logits, _ = answer(network, ids, [1, 2, 2, 3], 12, embeds=embeds)
    expected, said = naive_answer(naive, ids[0], [1, 2, 2, 3], 12, start=embeds[0].double())
    assert found[0].tolist() == expected.tolist()
    torch.testing.assert_close(logits[0].double(), said, atol=5e-5, rtol=1e-5)


def test_eager_attention_works_with_depths(folder, naive):
    """The original's eager and SDPA masks break as soon as a cache lags behind."""
    network = load_network(folder)
    network.set_attn_implementation("eager")
    ids, _, _ = answer(network, prompt(1, 7), [1, 2, 2, 3], 16)
    assert ids[0].tolist() == naive_answer(naive, prompt(1, 7)[0], [1, 2, 2, 3], 16)[0].tolist()


def test_what_a_depth_has_read_is_not_kept(network):
    """Only the states that some depth still has to read stay in memory."""
    decoding = Decoding(network, [1, 3])
    with torch.no_grad():
        decoding.prefill(prompt(1, 50))
        kept = []
        for token in range(8):
            decoding.step(torch.tensor([token]))
            kept.append(sum(states.shape[1] for states in decoding._unread if states is not None))
    assert kept[:3] == [50, 50, 0] and max(kept[3:]) <= 4
