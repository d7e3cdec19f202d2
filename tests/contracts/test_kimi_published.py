"""Kimi-Audio's published folder: read as it is, written again, and refused in one line where it does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elocute.errors import InputError
from elocute.models.kimi import (
    KimiConfig,
    KimiForCausalLM,
    check_network,
    load_adaptor,
    load_network,
    load_vocabulary,
    read_config,
    save_network,
)
from tests.contracts import kimi
from tests.contracts.kimi import Sizes, streams, tensors
from tests.contracts.test_kimi import Naive

SIZES = Sizes()
VOCABULARY = kimi.OFFSET + kimi.N_CODES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi") / "Kimi-Audio-7B-Instruct")


@pytest.fixture(scope="module")
def network(folder) -> KimiForCausalLM:
    return load_network(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(folder: Path, **values) -> None:
    said = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in (said | values).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(said))


# the published files


def test_the_builder_has_as_many_tensors_as_the_published_arithmetic_says():
    count = len(kimi.shapes(Sizes(layers=28, mimo=6)))
    assert count == 34 * 12 + 6 + 5 and count + 34 == 453


def test_saved_files_are_the_published_ones(folder, network, tmp_path):
    save_network(network, folder, tmp_path)
    there = {file.name for file in folder.iterdir() if file.is_file()}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == there
    assert "model-7-of-7.safetensors" in there and "model-8-of-8.safetensors" in there
    before, after = tensors(folder), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    old, new = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    assert new == old | {"torch_dtype": "float32"}
    old, new = (json.loads((place / "model.safetensors.index.json").read_text()) for place in (folder, tmp_path))
    assert new == old
    for name in ("tiktoken.model", "tokenizer_config.json", "modeling_moonshot_kimia.py"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_was_saved_loads_again(folder, network, tmp_path):
    save_network(network, folder, tmp_path / "one")
    tuned = load_network(tmp_path / "one")
    with torch.no_grad():
        tuned.mimo_output.weight += 1
    save_network(tuned, tmp_path / "one", tmp_path / "two")
    again, given = load_network(tmp_path / "two"), streams(11, 1, 5)
    with torch.no_grad():
        assert torch.equal(again(**given).audio, tuned(**given).audio)
        assert torch.equal(again(**given).text, network(**given).text)
    assert load_vocabulary(tmp_path / "two")[1] == load_vocabulary(tmp_path / "one")[1]


def test_whatever_lies_in_the_folder_goes_along(copy, tmp_path):
    """However large it is and wherever in the folder: the authors' code is to find what it asks for."""
    (copy / "assets").mkdir()
    (copy / "assets/prompt.wav").write_bytes(b"RIFF")
    with open(copy / "large.bin", "wb") as file:
        file.truncate(17 << 20)
    save_network(load_network(copy), copy, tmp_path / "saved")
    there, saved = ({str(file.relative_to(at)) for file in at.rglob("*")} for at in (copy, tmp_path / "saved"))
    assert there == saved and (tmp_path / "saved/large.bin").stat().st_size == 17 << 20


def test_heads_and_embeddings_are_three_matrices(network):
    owned = {tensor.data_ptr() for tensor in (network.model.embed_tokens.weight, network.lm_head.weight)}
    assert len(owned | {network.mimo_output.weight.data_ptr()}) == 3


def test_bfloat16_is_loaded_and_saved_as_such(folder, tmp_path):
    network = load_network(folder, dtype="auto")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    save_network(network, folder, tmp_path)
    assert tensors(tmp_path)["lm_head.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_adaptor_loads_alone(folder, network):
    adaptor, features = load_adaptor(folder), torch.randn(3, 4 * SIZES.whisper)
    with torch.no_grad():
        assert torch.equal(adaptor(features), network.model.vq_adaptor(features))
        naive = Naive(folder).adaptor(features.double().numpy())
        assert np.abs(adaptor(features).numpy() - naive).max() < 1e-5


def test_weights_in_one_file_load_too(copy, network, tmp_path):
    save_as_one(copy)
    given = streams(13, 1, 4)
    with torch.no_grad():
        assert torch.equal(load_network(copy)(**given).audio, network(**given).audio)
    save_network(load_network(copy), copy, tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").glob("*.safetensors*")} == {"model.safetensors"}
    load_network(tmp_path / "saved")


def save_as_one(folder: Path) -> None:
    together = tensors(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(together, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_real_sizes_are_those_of_the_published_weights():
    config = KimiConfig(
        vocab_size=168448, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    with torch.device("meta"):
        state = KimiForCausalLM(config).state_dict()
    assert len(state) == 419 and sum(2 * tensor.numel() for tensor in state.values()) == 19_532_668_928


def test_the_branch_may_begin_behind_the_first_layer(tmp_path):
    assert load_network(kimi.build(tmp_path, Sizes(branch=0))).config.kimia_mimo_transformer_from_layer_index == 0


def test_without_a_key_the_delay_is_what_the_original_samples_with(copy):
    edit(copy, kimia_mimo_audiodelaytokens=...)
    assert load_vocabulary(copy)[1].delay == 6
    edit(copy, kimia_mimo_audiodelaytokens=3)
    assert load_vocabulary(copy)[1].delay == 3


# rope_theta: where 10000 silently wins


def test_rope_theta_is_read_from_the_older_key(network):
    assert network.config.rope_parameters["rope_theta"] == SIZES.theta
    half = SIZES.hidden // SIZES.heads // 2
    expected = SIZES.theta ** (-torch.arange(half) / half)
    assert torch.allclose(network.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("said", [10000.0, ...])
def test_a_rope_theta_that_the_weights_were_not_trained_with_is_refused(copy, said):
    edit(copy, rope_theta=said)
    with pytest.raises(InputError, match=r"rope_theta: config.json says 10000.*about 1e\+06"):
        load_network(copy)


def test_without_a_key_rope_theta_is_the_originals_default(tmp_path):
    folder = kimi.build(tmp_path / "small", Sizes(theta=10000.0))
    edit(folder, rope_theta=...)
    assert load_network(folder).config.rope_parameters["rope_theta"] == 10000.0


# bad input: one line, before a weight is read


@pytest.mark.parametrize("kind", ["moonshot_kimia", "kimi_audio", ...])
def test_model_type_does_not_matter(copy, kind):
    edit(copy, model_type=kind)
    assert read_config(copy).kimia_token_offset == kimi.OFFSET


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"kimia_mimo_layers": ...}, "kimia_mimo_layers: expected an integer from 1 on, got None"),
        ({"kimia_mimo_audiodelaytokens": 6.5}, "kimia_mimo_audiodelaytokens: expected an integer from 0 on, got 6.5"),
        ({"kimia_media_begin": "x"}, "kimia_media_begin: expected an integer"),
        ({"hidden_act": "gelu"}, "hidden_act: expected \"silu\", got 'gelu'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"torch_dtype": "float7"}, "float7"),
        ({"kimia_mimo_transformer_from_layer_index": 4}, "expected a layer below 4, got 4"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected false"),
        ({"use_whisper_feature": False}, "use_whisper_feature: expected true"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_theta": "high"}, "rope_theta"),
        ({"vocab_size": kimi.OFFSET}, "leaves no code"),
        ({"vocab_size": VOCABULARY + 1}, r"weight: expected the shape \[379, 32\]"),
        ({"num_hidden_layers": 5}, "the weights lack model.layers.4."),
        ({"num_hidden_layers": 3}, "the weights hold model.layers.3."),
        ({"kimia_adaptor_input_dim": 5120}, "vq_adaptor"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(copy, values, message):
    edit(copy, **values)
    with pytest.raises(InputError, match=message) as caught:
        load_network(copy)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(copy):
    (copy / "model-3-of-7.safetensors").unlink()
    with pytest.raises(InputError, match="model-3-of-7.safetensors: missing"):
        check_network(copy)


def test_a_damaged_shard_is_named(copy):
    shard = copy / "model-3-of-7.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match="model-3-of-7.safetensors: not a whole safetensors file"):
        load_network(copy)


def test_a_shard_without_what_the_index_says_is_named(copy):
    shutil.copyfile(copy / "model-3-of-7.safetensors", copy / "model-2-of-7.safetensors")
    with pytest.raises(InputError, match=r"model-2-of-7.safetensors: lacks model.layers.1\."):
        load_network(copy)


def test_an_index_that_points_elsewhere_is_refused(copy):
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-3-of-7', '"../model-3-of-7'))
    with pytest.raises(InputError, match="names of files beside it"):
        load_network(copy)


def test_a_folder_of_nothing_is_one_line(tmp_path):
    with pytest.raises(InputError, match="config.json: not the config of a Kimi-Audio"):
        load_network(tmp_path)
