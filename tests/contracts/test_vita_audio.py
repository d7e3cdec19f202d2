"""VITA-Audio's network: its equations, its published folders, and what they may not hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import FunAsrNanoEncoderConfig, Qwen2Config, Qwen2ForCausalLM

from elocute.errors import InputError
from elocute.models.vita import (
    UserAudio,
    VitaConfig,
    VitaPlusConfig,
    is_mtp,
    load_network,
    read_beside,
    read_config,
    read_mode,
    save,
    write_audio,
)  # fmt: skip
from elocute.models.vita.network import VitaForCausalLM
from elocute.models.vita.user_audio import Projector
from elocute.speech.sensevoice import SenseVoice
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


@pytest.fixture
def copied(boost, tmp_path) -> Path:
    return Path(shutil.copytree(boost, tmp_path / "copy"))


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 330, shape, generator=torch.Generator().manual_seed(7))


def depths(network, ids, **how):
    hidden = network.model(ids, use_cache=False, **how).last_hidden_state
    return network.depths(ids, hidden, how.get("position_ids"), how.get("attention_mask"))


def edit(file: Path, **changes) -> None:
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not ...}))


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
    said = {key: value for key, value in json.loads((vanilla / "config.json").read_text()).items()}
    plain = Qwen2ForCausalLM(Qwen2Config(**{key: said[key] for key in said if key not in ("model_type", "auto_map")}))
    state = {name: tensor for name, tensor in load_all(vanilla).items() if "audio_" not in name}
    plain.load_state_dict(state)
    torch.testing.assert_close(network(ids).logits, plain.eval()(ids).logits)
    assert len(depths(network, ids)) == 1


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


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


def test_packed_rows_are_their_sequences(boost):
    """Several sequences in a row, some shorter than a depth reads, and padding that counts on behind them."""
    network, ids = load_network(boost), some_ids(2, 16)
    positions = torch.tensor([[*range(7), *range(9)], [*range(2), *range(5), *range(9)]])
    hidden = network.model(ids, position_ids=positions, use_cache=False).last_hidden_state
    packed = network.packed_depths(ids, hidden, positions)
    starts = [(row, start) for row, start in (positions == 0).nonzero().tolist()]
    for depth, (state, last) in enumerate(packed):
        expected, places = [], []
        for (row, start), (after, stop) in zip(starts, [*starts[1:], (2, 0)], strict=True):
            stop = stop if after == row else 16
            if stop - start > depth:
                expected.append(depths_of_one(network, ids[row : row + 1, start:stop], depth))
                places += range(row * 16 + start + depth, row * 16 + stop)
        assert last.tolist() == places
        torch.testing.assert_close(state, torch.cat(expected), atol=1e-5, rtol=1e-5)


def depths_of_one(network, ids, depth):
    hidden = network.model(ids, use_cache=False).last_hidden_state
    for d in range(1, depth + 1):
        positions = torch.arange(d, ids.shape[1])[None]
        hidden = network.mtp(d, hidden[:, :-1], network.model.embed_tokens(ids)[:, d:], positions)
    return hidden[0]


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


# the config


def test_rope_theta_of_old_is_taken_over(boost):
    config = read_config(boost)
    assert config.rope_parameters["rope_theta"] == 1e6
    assert (config.n_main, config.n_mtp, config.sliding_window) == (2, 3, None)
    assert config.dtype == torch.float32


def test_kinds_are_told_apart(boost, plus):
    assert type(read_config(boost)) is VitaConfig and not read_config(boost).hears_features
    assert type(read_config(plus)) is VitaPlusConfig and read_config(plus).hears_features


def test_a_kind_is_known_by_its_architecture_alone(copied):
    edit(copied / "config.json", model_type=...)
    assert type(read_config(copied)) is VitaConfig


def test_keys_left_out_are_the_originals_defaults(copied):
    edit(copied / "config.json", num_nextn_predict_layers=..., mtp_loss_weight=...)
    config = read_config(copied)
    assert (config.n_main, config.n_mtp, config.mtp_loss_weight) == (4, 1, 1.0)


def test_the_mode_is_the_folders_or_the_default(copied):
    assert read_mode(copied, read_config(copied)) == [1, 10, 4, 10]
    edit(copied / "generation_config.json", mtp_inference_mode=...)
    assert read_mode(copied, read_config(copied)) == [1, 3]
    edit(copied / "generation_config.json", mtp_inference_mode="boost")
    with pytest.raises(InputError, match="mtp_inference_mode: expected a list"):
        read_mode(copied, read_config(copied))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "expected qwen2_mtp or"),
        ({"model_type": "qwen2_mtp_sensevoice"}, "expected qwen2_mtp or"),
        ({"num_nextn_predict_layers": 5}, "expected 0 … 4"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected false"),
        ({"use_sliding_window": True}, "use_sliding_window: expected false"),
        ({"hidden_size": "wide"}, "not a config of qwen2_mtp"),
        ({"num_nextn_predict_layers": 2}, "hold mtp_embed_norms.2.weight, for which config.json has no place"),
        ({"num_hidden_layers": 6}, "the weights lack model.layers.5.self_attn.q_proj.weight"),
        ({"vocab_size": 400}, r"expected shape \[400, 32\] by config.json, got \[344, 32\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copied, changes, message):
    edit(copied / "config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_network(copied)
    assert "\n" not in str(caught.value)


# the folder


@pytest.mark.parametrize("name", ["boost", "plus", "vanilla"])
def test_saved_again_it_is_the_same_folder(name, request, tmp_path):
    folder = request.getfixturevalue(name)
    network = load_network(folder)
    audio = UserAudio.load(folder).published() if network.config.hears_features else None
    save(tmp_path / "saved", read_beside(folder), network, audio, max_shard_size="100KB")
    expected, found = read_weights(folder), read_weights(tmp_path / "saved")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "saved/config.json").read_text()) == json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name and file.name != "config.json":
            assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    index = json.loads((tmp_path / "saved/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(expected) and len(set(index["weight_map"].values())) > 1
    for file in (tmp_path / "saved").glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            assert shard.metadata()["format"] == "pt"  # transformers 4 asks for it
    ids = some_ids(1, 8)
    torch.testing.assert_close(load_network(tmp_path / "saved")(ids).logits, network(ids).logits)


def test_saving_over_a_folder_leaves_no_shard_of_before(copied, tmp_path):
    network = load_network(copied)
    save(copied, read_beside(copied), network)
    assert [file.name for file in copied.glob("*.safetensors*")] == ["model.safetensors"]
    ids = some_ids(1, 8)
    torch.testing.assert_close(load_network(copied)(ids).logits, network(ids).logits)


def test_the_config_names_the_type_that_is_saved(boost, tmp_path):
    network = load_network(boost, dtype=torch.bfloat16)
    save(tmp_path / "saved", read_beside(boost), network)
    said = json.loads((tmp_path / "saved/config.json").read_text())
    assert said["torch_dtype"] == "bfloat16" and said["rope_theta"] == 1e6 and "rope_parameters" not in said
    assert load_network(tmp_path / "saved", dtype="auto").dtype == torch.bfloat16
    assert load_network(tmp_path / "saved").dtype == torch.float32


def test_keys_of_the_published_config_that_mean_nothing_here_are_kept(boost, tmp_path):
    save(tmp_path / "saved", read_beside(boost), load_network(boost))
    said = json.loads((tmp_path / "saved/config.json").read_text())
    assert said["speech_token_offset"] == 151685 and "auto_map" in said and said["sliding_window"] == 131072


def test_plus_is_not_saved_without_its_ears(plus, boost, tmp_path):
    with pytest.raises(ValueError, match="user audio"):
        save(tmp_path / "saved", read_beside(plus), load_network(plus))
    with pytest.raises(ValueError, match="user audio"):
        save(tmp_path / "saved", read_beside(boost), load_network(boost), {})
    assert not (tmp_path / "saved").exists()


def test_a_missing_shard_is_named(copied):
    (copied / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: weights: expected this file"):
        load_network(copied)


def test_a_cut_shard_is_named(copied):
    file = copied / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: not a whole safetensors file"):
        load_network(copied)


def test_an_index_that_lies_is_refused(copied):
    index = copied / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=weights | {"model.norm.bias": weights["model.norm.weight"]})
    with pytest.raises(InputError, match="model.norm.bias is in no shard"):
        load_network(copied)
    weights.pop("model.norm.weight")
    edit(index, weight_map=weights)
    with pytest.raises(InputError, match="model.norm.weight is in a shard but not in it"):
        load_network(copied)


def test_boost_with_an_audio_encoder_is_refused(tmp_path):
    folder = vita_audio.boost(tmp_path / "boost", n_units=FEW)
    index = folder / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"] | {"model.audio_model.x": "more.safetensors"}
    save_file({"model.audio_model.x": torch.zeros(1)}, folder / "more.safetensors")
    edit(index, weight_map=weights)
    with pytest.raises(InputError, match="the weights hold model.audio_model.x"):
        load_network(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.json: not readable"):
        load_network(tmp_path / "nowhere")


# the published sizes


def test_published_sizes_have_the_published_numbers_of_parameters():
    sizes = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 168072, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        boost = VitaForCausalLM(VitaConfig(**sizes, num_hidden_layers=38, num_nextn_predict_layers=10))
        vanilla = VitaForCausalLM(VitaPlusConfig(**sizes, num_hidden_layers=28, num_nextn_predict_layers=0))
        audio = SenseVoice(FunAsrNanoEncoderConfig(), 16, 25055), Projector(512, 3584)
    assert boost.num_parameters() == 10_317_912_576
    ears = sum(parameter.numel() for part in audio for parameter in part.parameters())
    assert vanilla.num_parameters() + ears == 7_979_042_111


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
    save(tmp_path / "saved", read_beside(deep), merged)
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
