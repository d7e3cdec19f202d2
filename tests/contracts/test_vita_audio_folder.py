"""VITA-Audio's published folders: read, refused where they do not fit, and saved as they came."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import FunAsrNanoEncoderConfig

from elocute.errors import InputError
from elocute.models.vita import UserAudio, drop_padding, load_network, load_tokens, read_config, read_mode, save
from elocute.models.vita.config import VitaConfig, VitaPlusConfig
from elocute.models.vita.network import VitaForCausalLM
from elocute.speech.sensevoice import SenseVoice
from tests.contracts import vita_audio
from tests.contracts.vita_naive import read_weights

FEW = 40  # units, where how many does not matter


@pytest.fixture(scope="module")
def boost(tmp_path_factory) -> Path:
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "boost", n_units=FEW)


@pytest.fixture(scope="module")
def plus(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus", n_units=FEW)


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "vanilla", n_mtp=0, n_units=FEW)


@pytest.fixture
def copied(boost, tmp_path) -> Path:
    return Path(shutil.copytree(boost, tmp_path / "copy"))


def edit(file: Path, **changes) -> None:
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not ...}))


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 330, shape, generator=torch.Generator().manual_seed(7))


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
    edit(copied / "config.json", num_nextn_predict_layers=...)
    config = read_config(copied)
    assert (config.n_main, config.n_mtp) == (4, 1)


def test_the_authors_attention_is_not_taken_over(copied):
    """Their machine had flash-attention."""
    edit(copied / "config.json", _attn_implementation="flash_attention_2", attn_implementation="flash_attention_2")
    assert "flash" not in str(read_config(copied)._attn_implementation)


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
        ({"num_nextn_predict_layers": 2}, "hold mtp_embed_norms.2.weight, for which the model has no place"),
        ({"num_hidden_layers": 6}, "the weights lack model.layers.5."),
        ({"vocab_size": 400}, r"expected the shape \[400, 32\], got \[344, 32\]"),
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
    save(tmp_path / "saved", folder, network)
    expected, found = read_weights(folder), read_weights(tmp_path / "saved")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "saved/config.json").read_text()) == json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name and file.name != "config.json":
            assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    maps = [json.loads((home / "model.safetensors.index.json").read_text()) for home in (folder, tmp_path / "saved")]
    assert maps[0]["weight_map"] == maps[1]["weight_map"] and len(set(maps[0]["weight_map"].values())) > 1
    for file in (tmp_path / "saved").glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            assert shard.metadata()["format"] == "pt"  # transformers 4 asks for it
    ids = some_ids(1, 8)
    torch.testing.assert_close(load_network(tmp_path / "saved")(ids).logits, network(ids).logits)


def test_a_folder_can_be_saved_over(copied, tmp_path):
    network = load_network(copied)
    before = sorted(file.name for file in copied.iterdir())
    save(copied, copied, network)
    assert sorted(file.name for file in copied.iterdir()) == before
    ids = some_ids(1, 8)
    torch.testing.assert_close(load_network(copied)(ids).logits, network(ids).logits)


def test_the_config_names_the_type_that_is_saved(boost, tmp_path):
    network = load_network(boost, dtype=torch.bfloat16)
    save(tmp_path / "saved", boost, network)
    said = json.loads((tmp_path / "saved/config.json").read_text())
    assert said["torch_dtype"] == "bfloat16" and said["rope_theta"] == 1e6 and "rope_parameters" not in said
    assert load_network(tmp_path / "saved", dtype="auto").dtype == torch.bfloat16
    assert load_network(tmp_path / "saved").dtype == torch.float32


def test_keys_of_the_published_config_that_mean_nothing_here_are_kept(boost, tmp_path):
    save(tmp_path / "saved", boost, load_network(boost))
    said = json.loads((tmp_path / "saved/config.json").read_text())
    assert said["speech_token_offset"] == 151685 and "auto_map" in said and said["sliding_window"] == 131072


def test_the_originals_code_is_saved_again_and_never_run(plus, tmp_path):
    folder = Path(shutil.copytree(plus, tmp_path / "copy"))
    for name in ("modeling_qwen2.py", "configuration_qwen2.py", "tokenization_qwen2.py"):
        (folder / name).write_text("raise SystemExit('it ran')\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "configuration_qwen2.C", "AutoModel": "modeling_qwen2.M"})
    network, *_ = load_network(folder), UserAudio.load(folder), load_tokens(folder)
    save(tmp_path / "saved", folder, network)
    assert (tmp_path / "saved/modeling_qwen2.py").read_text() == "raise SystemExit('it ran')\n"


def test_whatever_lies_in_the_folder_goes_along(plus, tmp_path):
    """The weights' licence asks for it."""
    folder = Path(shutil.copytree(plus, tmp_path / "copy"))
    more = ("LICENSE", "README.md", "assets/banner.png", "vocab.bpe", "chn_jpn_yue_eng_ko_spectok.bpe.model")
    for name in more:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    save(tmp_path / "saved", folder, load_network(folder))
    assert [(tmp_path / "saved" / name).read_text() for name in more] == [*more]


def test_padding_rows_of_the_head_are_neither_said_nor_lost(boost, tmp_path):
    tokens, network = load_tokens(boost), load_network(boost)
    assert tokens.size < len(network.lm_head.weight)
    expected = network(some_ids(1, 8)).logits[..., : tokens.size]
    drop_padding(network, tokens.size)
    torch.testing.assert_close(network(some_ids(1, 8)).logits, expected)
    save(tmp_path / "saved", boost, network)
    found, published = read_weights(tmp_path / "saved"), read_weights(boost)
    assert torch.equal(found["lm_head.weight"], published["lm_head.weight"])


def test_it_is_saved_from_where_it_came(boost, tmp_path):
    folder = Path(shutil.copytree(boost, tmp_path / "copy"))
    network = load_network(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="copy: expected a folder with a model's weights, there is none"):
        save(tmp_path / "saved", folder, network)


def test_a_missing_shard_is_named(copied):
    (copied / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: missing, model.safetensors.index"):
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
    with pytest.raises(InputError, match="lacks model.norm.bias, which model.safetensors.index.json says is in it"):
        load_network(copied)
    edit(index, weight_map={name: file for name, file in weights.items() if name != "model.norm.weight"})
    with pytest.raises(
        InputError, match="holds model.norm.weight, of which model.safetensors.index.json knows nothing"
    ):
        load_network(copied)
    edit(index, weight_map=weights | {"model.norm.weight": 1})
    with pytest.raises(InputError, match="weight_map: expected names of files beside it"):
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
    with pytest.raises(InputError, match="config.json: not the config of a VITA-Audio"):
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
        audio = SenseVoice(FunAsrNanoEncoderConfig(), 16)
    assert boost.num_parameters() == 10_317_912_576
    ears, recogniser = sum(parameter.numel() for parameter in audio.parameters()), (512 + 1) * 25055
    assert vanilla.num_parameters() + ears + recogniser == 7_979_042_111
