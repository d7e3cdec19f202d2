"""MiniCPM-o 2.6's folder: parts alone and together, saved as it was published, and what does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.models.minicpm_o import PARTS, ChatTTSConfig, ConditionalChatTTS, MiniCPMO, MiniCPMOConfig
from elocute.models.minicpm_o.prompt import load_tokenizer
from elocute.models.minicpm_o.spoken import load_text_tokenizer
from elocute.speech.chat_tts import ChatTTSCodec
from elocute.speech.chat_tts.dvae import Dvae
from tests.contracts import minicpm_o

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "MiniCPM-o-2_6")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def everything(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_each_part_loads_alone_with_exactly_its_published_tensors(folder, part):
    network = MiniCPMO.load(folder, [part])
    assert [name for name in PARTS if getattr(network, name) is not None] == [part]
    spare = ("tts.dvae.", "tts.model.embed_tokens.")
    stored = {n: t for n, t in everything(folder).items() if n.startswith(f"{part}.") and not n.startswith(spare)}
    state = network.state_dict()
    assert set(state) == set(stored)
    assert all(state[name].dtype == torch.float32 and torch.equal(state[name], stored[name].float()) for name in state)
    assert all(not tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])


def test_auto_keeps_the_type_of_the_weights(folder):
    assert MiniCPMO.load(folder, ["tts"], dtype="auto").tts.emb_text.weight.dtype == torch.bfloat16


def test_llm_has_the_rope_theta_of_the_old_key_and_the_decoder_has_its_own(folder):
    """Trap: transformers 5 reads rope_parameters; without them θ silently is 10000. The decoder's really is."""
    network = MiniCPMO.load(folder, ["llm", "tts"])
    llm, tts = network.llm.model.rotary_emb.inv_freq, network.tts.model.rotary_emb.inv_freq
    assert torch.allclose(llm, 1e6 ** (-torch.arange(0, 12, 2) / 12))
    assert torch.allclose(tts, 1e4 ** (-torch.arange(0, 8, 2) / 8))


def test_no_code_of_the_folder_runs(folder, tmp_path):
    """The folder's .py files raise; its tokenizer and model classes exist only in them."""
    config = MiniCPMOConfig.read(folder)
    tokenizer, tokens = load_tokenizer(folder, config)
    assert tokenizer.convert_ids_to_tokens(tokens.spk) == "<|spk|>"
    assert load_text_tokenizer(folder, config.tts).convert_tokens_to_ids("[Etts]") == config.tts.text_eos_token_id


def test_published_sizes_give_the_published_counts():
    """439 tensors and 251,839,540 numbers in `tts`, DVAE and the unused table included; the DVAE has 15.03 million."""
    with init_empty_weights():
        tts, dvae = ConditionalChatTTS(ChatTTSConfig(llm_dim=3584)), Dvae()
    state = tts.state_dict() | dvae.state_dict(prefix="dvae.")
    assert len(state) + 1 == 439
    assert sum(tensor.numel() for tensor in state.values()) + 32000 * 768 == 251_839_540
    assert round(sum(tensor.numel() for tensor in dvae.parameters()) / 1e6, 2) == 15.03


# ---- saving --------------------------------------------------------------------------------------------------------


def test_a_saved_folder_is_the_published_one_with_the_trained_part_changed(folder, tmp_path):
    network = MiniCPMO.load(folder, ["tts"], dtype="auto")
    with torch.no_grad():
        network.tts.head_code[2].parametrizations.weight.original0.add_(1)
    network.save(tmp_path / "new")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()
    } == names
    for name in names - {f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)} - {INDEX}:
        assert (folder / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert json.loads((folder / INDEX).read_text()) == json.loads((tmp_path / "new" / INDEX).read_text())
    before, after = everything(folder), everything(tmp_path / "new")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"tts.head_code.2.parametrizations.weight.original0"}
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}


def test_every_tensor_stays_in_its_shard(folder, tmp_path):
    MiniCPMO.load(folder, ["llm", "apm"]).save(tmp_path)
    for file in folder.glob("*.safetensors"):
        assert set(load_file(file)) == set(load_file(tmp_path / file.name))
    llm = sum(tensor.nbytes for tensor in everything(tmp_path).values())
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == llm  # float32 parts are larger


def test_saved_and_loaded_again_is_equal_part_by_part(folder, tmp_path):
    network = MiniCPMO.load(folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1e-4)  # lost in bfloat16: parts are saved in the type they are trained in
    network.save(tmp_path)
    again = MiniCPMO.load(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())


def test_a_folder_can_be_saved_over_itself(copy):
    network = MiniCPMO.load(copy, ["audio_projection_layer"])
    with torch.no_grad():
        network.audio_projection_layer.linear1.bias.fill_(7)
    network.save(copy)
    assert MiniCPMO.load(copy).audio_projection_layer.linear1.bias.eq(7).all()
    assert not [path for path in copy.rglob(".*")]


def test_saving_inside_the_source_or_without_it_is_refused(copy, tmp_path):
    network = MiniCPMO.load(copy, ["tts"])
    with pytest.raises(InputError, match="expected a folder outside of"):
        network.save(copy / "trained")
    shutil.rmtree(copy)
    with pytest.raises(InputError, match="gone; what was not loaded"):
        network.save(tmp_path / "new")


def test_a_folder_with_another_models_weights_is_refused(folder, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors: another model's weights lie there"):
        MiniCPMO.load(folder, ["tts"]).save(tmp_path)


def test_one_file_instead_of_shards(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "one", ignore=shutil.ignore_patterns("model*"))
    save_file(everything(folder), tmp_path / "one/model.safetensors", metadata={"format": "pt"})
    network = MiniCPMO.load(tmp_path / "one", ["tts"])
    network.save(tmp_path / "two")
    assert everything(tmp_path / "two").keys() == everything(folder).keys()
    assert not (tmp_path / "two" / INDEX).exists()


def test_lora_on_llm_and_decoder_merges_into_a_folder_of_plain_weights(folder, tmp_path):
    network = MiniCPMO.load(folder)
    lora = LoraConfig(r=2, target_modules=r"(llm|tts)\..*\.(q_proj|v_proj)", init_lora_weights=False)
    get_peft_model(network, lora).merge_and_unload().save(tmp_path)
    before, after = everything(folder), everything(tmp_path)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    layers = [f"{part}.layers.{layer}" for part in ("llm.model", "tts.model") for layer in (0, 1)]
    assert changed == {f"{layer}.self_attn.{proj}.weight" for layer in layers for proj in ("q_proj", "v_proj")}


def test_gradient_checkpointing_recomputes_the_same_gradients(folder):
    grads = []
    for on in (False, True):
        network = MiniCPMO.load(folder, ["llm", "tts"]).train()
        if on:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        voice = network.llm.model(input_ids=torch.arange(9)[None]).last_hidden_state[:, 5]
        codes = torch.arange(24).view(1, 6, 4)
        network.tts(torch.arange(302)[None], torch.tensor([14]), voice, codes).square().sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and "llm.model.layers.0.mlp.up_proj.weight" in grads[0]
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])
    assert network.llm.model.gradient_checkpointing and network.tts.model.gradient_checkpointing


# ---- bad input -----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def tensors(folder: Path, drop: str = "", **add: torch.Tensor) -> None:
    """Write the shards anew without one tensor and with more."""
    state = {name: tensor for name, tensor in everything(folder).items() if name != drop}
    minicpm_o.shard(folder, state | add)


def test_another_models_folder_is_named_as_such(copy):
    rewrite(copy, model_type="qwen2")
    with pytest.raises(InputError, match=r"config.json: model_type: expected minicpmo \(MiniCPM-o 2.6\), got 'qwen2'$"):
        MiniCPMO.load(copy)


def test_minicpm_o_4_5s_decoder_is_not_this_one(copy):
    said = json.loads((copy / "config.json").read_text())["tts_config"]
    rewrite(copy, tts_config=said | {"model_type": "minicpmtts"})
    with pytest.raises(InputError, match="tts_config: model_type: expected conditional_chattts, got 'minicpmtts'"):
        MiniCPMO.load(copy)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "audio_config", "tts_config"])
def test_config_must_say_what_the_parts_are(copy, key):
    rewrite(copy, **{key: None})
    with pytest.raises(InputError, match=f"config.json: {key}: missing"):
        MiniCPMO.load(copy)


def test_decoder_of_another_llm_is_refused(copy):
    said = json.loads((copy / "config.json").read_text())["tts_config"]
    rewrite(copy, tts_config=said | {"llm_dim": 2560})
    with pytest.raises(InputError, match="tts_config: llm_dim: expected 48, got 2560"):
        MiniCPMO.load(copy, ["tts"])


def test_a_missing_shard_is_named(copy):
    (copy / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00003-of-00004.safetensors: missing, model.safetensors.index.json"):
        MiniCPMO.load(copy, ["llm"])


def test_a_cut_shard_is_named(copy):
    file = copy / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model-00002-of-00004.safetensors: not a whole safetensors file"):
        MiniCPMO.load(copy, ["llm"])


def test_an_index_that_promises_more_than_a_shard_holds(copy):
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["llm.model.layers.2.mlp.up_proj.weight"] = "model-00001-of-00004.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"00001-of-00004.safetensors: lacks llm.model.layers.2.mlp.up_proj.weight"):
        MiniCPMO.load(copy)


@pytest.mark.parametrize("place", ["../model.safetensors", 3])
def test_an_index_that_points_elsewhere(copy, place):
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["resampler.query"] = place
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"{INDEX}: (weight_map|not the index)"):
        MiniCPMO.load(copy)


def test_missing_and_strange_tensors_are_named(copy):
    tensors(copy, drop="tts.emb_code.1.weight")
    with pytest.raises(InputError, match=r"tts: the weights lack emb_code.1.weight"):
        MiniCPMO.load(copy, ["tts"])
    MiniCPMO.load(copy, ["llm"])  # what is not asked for need not be whole
    tensors(copy, **{"tts.emb_code.1.weight": torch.zeros(626, 32), "tts.style.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"tts: the weights hold style.weight, for which the model"):
        MiniCPMO.load(copy, ["tts"])
    tensors(copy, drop="tts.style.weight", **{"talker.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"the weights hold talker.weight, for which a MiniCPM-o 2.6 has no place"):
        MiniCPMO.load(copy, ["tts"])


def test_a_checkpoint_without_a_part(copy):
    state = {name: tensor for name, tensor in everything(copy).items() if not name.startswith("apm.")}
    minicpm_o.shard(copy, state)
    with pytest.raises(InputError, match="the weights have no part apm"):
        MiniCPMO.load(copy)


def test_sizes_that_are_not_the_configs(copy):
    rewrite(copy, intermediate_size=100)
    with pytest.raises(InputError, match=r"llm: model.layers.0.mlp.\w+.weight: expected the shape \[\d+.*\], got \["):
        MiniCPMO.load(copy, ["llm"])


def test_what_does_not_fit_is_found_before_any_part_is_read(copy, monkeypatch):
    rewrite(copy, tts_config=json.loads((copy / "config.json").read_text())["tts_config"] | {"num_vq": 5})
    monkeypatch.setattr(Shards, "read", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=r"tts: the weights lack emb_code.4.weight"):
        MiniCPMO.load(copy)


def test_a_vocabulary_larger_than_the_llm(folder):
    config = MiniCPMOConfig.read(folder)
    config.llm.vocab_size = 270
    with pytest.raises(InputError, match="the LLM has 270 embeddings, its tokenizer has id 276"):
        load_tokenizer(folder, config)


def test_a_tokenizer_of_another_model(copy):
    text = (copy / "tokenizer.json").read_text().replace("<|spk_bos|>", "<|box_start|>")
    (copy / "tokenizer.json").write_text(text)
    (copy / "added_tokens.json").unlink()
    with pytest.raises(InputError, match=r"the tokenizer has no token '<\|spk_bos\|>'"):
        load_tokenizer(copy, MiniCPMOConfig.read(copy))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer.json: missing, it is the LLM's tokenizer"):
        load_tokenizer(copy, MiniCPMOConfig.read(copy))


def test_decoder_ids_that_are_not_the_tokenizers(copy):
    config = MiniCPMOConfig.read(copy).tts
    with pytest.raises(InputError, match=r"\[Ptts\]: tts_config says id 21132, it is 6"):
        load_text_tokenizer(copy, ChatTTSConfig(llm_dim=48, spk_emb_token_id=config.spk_emb_token_id))
    shutil.rmtree(copy / "assets/chattts_tokenizer")
    with pytest.raises(InputError, match=r"tokenizer.json: missing, it is the speech decoder's tokenizer"):
        load_text_tokenizer(copy, config)


def test_parts_are_named_rightly(folder):
    with pytest.raises(ValueError, match="got vision$"):
        MiniCPMO.load(folder, ["tts", "vision"])


def test_shards_say_what_is_not_there(folder, tmp_path):
    assert Shards.open(folder).shapes("tts.emb_code.0.") == {"weight": [626, 32]}
    with pytest.raises(InputError, match="expected model.safetensors.index.json or model.safetensors, there is none"):
        Shards.open(tmp_path)
    with pytest.raises(InputError, match="expected a folder with a model's weights"):
        Shards.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"the weights lack tts.dvae.decoder"):
        minicpm_o.shard(tmp_path, {f"x{i}": torch.zeros(1) for i in range(4)})
        ChatTTSCodec.load(tmp_path)
