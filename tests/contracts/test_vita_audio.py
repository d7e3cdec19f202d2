"""VITA-Audio's network: its equations, and what training moves."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from elocute.data.files import read_json
from elocute.models.vita import load_network, save
from elocute.models.vita.network import is_mtp, write_audio
from tests.contracts import vita_audio
from tests.contracts.vita_naive import NaiveVita, read_weights

FEW = 40  # units, where how many does not matter


@pytest.fixture(scope="module")
def boost(tmp_path_factory) -> Path:
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "boost", n_units=FEW)


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """Main layers 0 … 10, depths 11 … 13: `layers.1` as a string is in half of them."""
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "deep", main=11, n_units=FEW)


@pytest.fixture(scope="module")
def plus(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus", n_units=FEW)


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "vanilla", n_mtp=0, n_units=FEW)


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 330, shape, generator=torch.Generator().manual_seed(7))


def depths(network, ids, **how):
    hidden = network.model(ids, use_cache=False, **how).last_hidden_state
    return network.depths(ids, hidden, how.get("position_ids"), how.get("attention_mask"))


# the equations


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_depth_is_its_equations(boost, attention):
    network, ids = load_network(boost), some_ids(2, 12)
    network.set_attn_implementation(attention)
    assert network.model.layers[3].self_attn.config._attn_implementation == attention
    naive = NaiveVita(boost, main=2)
    found = depths(network, ids)
    assert [state.shape[1] for state in found] == [12, 11, 10, 9]
    for row in range(2):
        for state, expected in zip(found, naive.states(ids[row]), strict=True):
            torch.testing.assert_close(state[row].double(), expected, atol=2e-5, rtol=1e-5)
            logits = network.lm_head(state[row])
            torch.testing.assert_close(logits.double(), naive.logits(expected), atol=5e-5, rtol=1e-5)


def test_the_depths_layers_are_no_layers_of_the_llm(boost):
    """A stock Qwen2 would run all 5."""
    network, ids = load_network(boost), some_ids(1, 9)
    with torch.no_grad():
        before = network(ids).logits
        for name, parameter in network.named_parameters():
            if is_mtp(name, 2):
                parameter.fill_(torch.nan)
        torch.testing.assert_close(network(ids).logits, before)
        assert depths(network, ids)[1].isnan().all()


def test_without_depths_it_is_a_plain_qwen2(vanilla):
    network, ids = load_network(vanilla), some_ids(2, 9)
    said = read_json(vanilla / "config.json", "a config")
    plain = Qwen2ForCausalLM(Qwen2Config(**{key: said[key] for key in said if key not in ("model_type", "auto_map")}))
    plain.load_state_dict({name: tensor for name, tensor in read_weights(vanilla).items() if "audio_" not in name})
    torch.testing.assert_close(network(ids).logits, plain.eval()(ids).logits)
    assert len(depths(network, ids)) == 1


def test_a_depth_rotates_by_the_place_of_the_token_it_embeds(boost):
    """Not by its own row; rotation is relative, so only a row that is somewhere else shows it."""
    network, ids = load_network(boost), some_ids(1, 6)
    hidden = network.model(ids).last_hidden_state
    embeds = network.model.embed_tokens(ids)[:, 1:]
    positions = torch.tensor([[1, 2, 3, 4, 5]])
    moved = torch.tensor([[1, 2, 3, 7, 8]])
    expected = depths(network, ids)[1]
    torch.testing.assert_close(network.mtp(1, hidden[:, :-1], embeds, positions), expected)
    assert not torch.allclose(network.mtp(1, hidden[:, :-1], embeds, moved), expected, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen_by_any_depth(boost, side):
    network, ids = load_network(boost), some_ids(2, 14)
    real = slice(5, 14) if side == "left" else slice(0, 9)
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[1] = 0
    mask[1, real] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = depths(network, ids, attention_mask=mask, position_ids=positions)
    alone = depths(network, ids[1:, real])
    for depth, (state, expected) in enumerate(zip(padded, alone, strict=True)):
        found = state[1:, real.start : real.stop - depth]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_rows(boost):
    network, ids = load_network(boost), some_ids(3, 10)
    for together, *alone in zip(depths(network, ids), *(depths(network, row[None]) for row in ids), strict=True):
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_heard_audio_replaces_embeddings_of_the_main_layers_only(plus):
    network, ids = load_network(plus), some_ids(2, 9)
    where = torch.zeros(2, 9, dtype=torch.bool)
    where[0, 2:5] = where[1, 1:3] = True
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    embeds = write_audio(network.model.embed_tokens(ids), where, features)
    torch.testing.assert_close(embeds[0, 2:5], features[:3])
    torch.testing.assert_close(embeds[1, 1:3], features[3:])
    assert torch.equal(embeds[~where], network.model.embed_tokens(ids)[~where])
    found = network.depths(ids, network.model(inputs_embeds=embeds).last_hidden_state)
    naive = NaiveVita(plus, main=2)
    for row in range(2):
        for state, expected in zip(found, naive.states(ids[row], embeds[row].detach()), strict=True):
            torch.testing.assert_close(state[row].double(), expected, atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="4 features of audio for 5 places"):
        write_audio(embeds, where, features[:4])


# training


def test_names_of_the_depths_are_matched_whole(deep):
    """`layers.1` is no prefix of a depth's layers 11 … 13, nor is layer 1 one of theirs."""
    names = [name for name, _ in load_network(deep).named_parameters() if is_mtp(name, 11)]
    assert {name.split(".")[2] for name in names if name.startswith("model.layers.")} == {"11", "12", "13"}
    assert {name.split(".")[0] for name in names} == {"model", "mtp_projs", "mtp_embed_norms", "mtp_hidden_norms"}
    assert not is_mtp("model.norm.weight", 11) and not is_mtp("lm_head.weight", 11)
    assert is_mtp("base_model.model.model.layers.11.self_attn.q_proj.lora_A.default.weight", 11)


def test_lora_can_be_kept_to_the_llm(deep, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=list(range(11)), r=2)
    wrapped = get_peft_model(load_network(deep), config)
    adapted = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(adapted) == 11 * 2 * 2 and not any(is_mtp(name, 11) for name in adapted)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    network, ids = wrapped.get_base_model(), some_ids(1, 8)
    expected = [state.detach() for state in depths(network, ids)]
    merged = wrapped.merge_and_unload()
    save(tmp_path / "saved", deep, merged)
    for state, said in zip(depths(load_network(tmp_path / "saved"), ids), expected, strict=True):
        torch.testing.assert_close(state, said, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(boost):
    network, ids = load_network(boost).train(), some_ids(2, 9)

    def gradients():
        network.zero_grad()
        sum(state.square().mean() for state in depths(network, ids)).backward()
        grads = {name: parameter.grad for name, parameter in network.named_parameters()}
        return {name: grad.clone() for name, grad in grads.items() if grad is not None}

    plain = gradients()
    assert any(is_mtp(name, 2) for name in plain)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4)
