"""CSM and its codec against transformers' own forward, generation and files, on tiny random weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration, CsmProcessor

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch
from elocute.rollout import Sampling, sample_groups
from tests.contracts import csm

RATE = 24000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return csm.checkpoint(tmp_path_factory.mktemp("models") / "csm-1b")


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return CsmForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[tuple[Path, np.ndarray]]:
    """Two recordings at 24 kHz, neither a whole number of frames."""
    home, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    found = []
    for number, samples in enumerate((9000, 13001)):
        path = home / f"{number}.wav"
        save_wav(path, (0.3 * random.standard_normal(samples)).astype(np.float32).clip(-1, 1), RATE)
        from elocute.data.audio import load_audio

        found.append((path, load_audio(path)[0]))
    return found


@pytest.fixture(scope="module")
def row(sounds) -> Example:
    """A context in another speaker's voice, and a text to speak, with its target."""
    turns = (Message("user", "hello there<|audio|>"), Message("user", "the cat"))
    [(first, _), (second, _)] = sounds
    return Example(
        "a", turns, (AudioRef(first),), target_audio=AudioRef(second), columns={"speakers": [3, 0]}, file="r", line=1
    )


def conversation(sounds, *, answered: bool) -> list[dict]:
    def turn(role, text, sound):
        audio = [] if sound is None else [{"type": "audio", "path": sound}]
        return {"role": role, "content": [{"type": "text", "text": text}, *audio]}

    return [turn("3", "hello there", sounds[0][1]), turn("0", "the cat", sounds[1][1] if answered else None)]


def test_logits_are_those_of_transformers_forward(folder, lm, theirs, sounds, row):
    processor = CsmProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        conversation(sounds, answered=True), tokenize=True, return_dict=True, output_labels=True
    )
    with torch.no_grad():
        expected = theirs(**inputs)
    audio = EncodedAudio(lm.codec)
    prompt, answer = lm.encode_prompt(row, audio), lm.encode_target(row, audio)
    frames = len(answer) // csm.CODEBOOKS
    assert len(prompt) + frames == inputs["input_ids"].shape[1]
    with torch.no_grad():
        batch = make_batch([prompt], [answer], torch.ones(1, len(answer), dtype=torch.bool), "cpu")
        found = lm.states(batch, share_prompts=False)
    logits = torch.empty(len(answer), lm.head().weight.shape[0])
    for of in found:
        logits[of.where] = of.hidden @ of.head.weight.T
    logits = logits.view(frames, csm.CODEBOOKS, -1)
    before = expected.logits[0, len(prompt) - 1 : -1]
    assert torch.allclose(logits[:, 0], before, atol=1e-5)
    assert torch.allclose(logits[:, 1:], expected.depth_decoder_logits[-frames:], atol=1e-5)


@pytest.mark.parametrize("context", [True, False])
def test_the_likeliest_answer_is_what_transformers_generates(folder, lm, theirs, sounds, row, context):
    processor = CsmProcessor.from_pretrained(folder)
    turns = conversation(sounds, answered=False)[0 if context else 1 :]
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True)
    expected = theirs.generate(**inputs, max_new_tokens=7, do_sample=False, depth_decoder_do_sample=False)
    if not context:
        row = replace(row, messages=row.messages[1:], audios=(), columns={})
    prompt = lm.encode_prompt(row, EncodedAudio(lm.codec))
    assert len(prompt) == inputs["input_ids"].shape[1]
    [[rollout]] = sample_groups(lm, [prompt], [[0]], Sampling(7, temperature=1e-5))
    assert rollout.tokens.ids.view(-1, csm.CODEBOOKS).tolist() == expected[0].tolist()


def test_sound_is_what_transformers_makes_of_the_codes(lm, theirs, sounds):
    codes = lm.codec.encode(sounds[1][1], RATE)
    with torch.no_grad():
        heard = theirs.codec_model.encode(torch.from_numpy(sounds[1][1])[None, None])
        assert codes.T.tolist() == heard.audio_codes[0, : csm.CODEBOOKS].tolist()
        expected = theirs.codec_model.decode(torch.from_numpy(codes).T[None]).audio_values[0, 0]
    sound = lm.codec.decode(codes)
    assert len(sound) == 1920 * len(codes) and np.allclose(sound, expected.clamp(-1, 1), atol=1e-5)


def test_saved_it_is_the_same_folder_and_transformers_loads_it(folder, lm, tmp_path):
    with torch.no_grad():
        weight = lm.model.depth_decoder.codebooks_head.weight
        before = weight.clone()
        weight.add_(1)
    lm.save(tmp_path / "saved")
    with torch.no_grad():
        weight.copy_(before)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == sorted(p.name for p in folder.iterdir())
    old, new = tensors(folder), tensors(tmp_path / "saved")
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["depth_decoder.codebooks_head.weight"]
    again, found = CsmForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(again.depth_decoder.codebooks_head.weight, before + 1)
    assert load_model(tmp_path / "saved").codec.digest == lm.codec.digest
    assert not list((tmp_path / "saved").glob("*.py")) and CsmProcessor.from_pretrained(tmp_path / "saved")


def test_the_hubs_folder_names_its_weights_in_its_config(folder, tmp_path):
    """What lies in its model.safetensors is neither read nor, being the weights before training, written again."""
    hub = tmp_path / "csm-1b"
    shutil.copytree(folder, hub)
    csm.as_on_the_hub(hub)
    check_model(hub)
    lm = load_model(hub)
    with torch.no_grad():
        lm.model.depth_decoder.codebooks_head.weight.add_(1)
    lm.save(tmp_path / "saved")
    lm.save(tmp_path / "saved")
    left_out = {"model.safetensors", "ckpt.pt"}
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {p.name for p in hub.iterdir()} - left_out
    again, found = CsmForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(again.depth_decoder.codebooks_head.weight, lm.model.depth_decoder.codebooks_head.weight)
    (hub / "transformers.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="config.json: transformers_weights: expected a file of weights beside it"):
        load_model(hub)


def test_a_folder_that_has_changed_loses_no_weights_silently(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    lm = load_model(other)
    place = json.loads((other / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    state = load_file(other / place)
    state["lm_head.weight_old"] = state.pop("lm_head.weight")
    save_file(state, other / place)
    index = (other / "model.safetensors.index.json").read_text()
    (other / "model.safetensors.index.json").write_text(index.replace('"lm_head.weight"', '"lm_head.weight_old"'))
    with pytest.raises(InputError, match="its weights have no lm_head.weight, which was loaded from there"):
        lm.save(tmp_path / "saved")


def test_depth_embeddings_stay_tied(lm):
    tied = lm.model.backbone_model.embed_tokens.embed_audio_tokens.weight
    assert tied is lm.model.depth_decoder.model.embed_tokens.weight


def test_the_codec_keeps_float32(folder):
    other = load_model(folder, dtype=torch.bfloat16)
    assert other.head().weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in other.codec.model.parameters()} == {torch.float32}
    assert not any("codec" in name for name, _ in other.model.named_modules())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def changed(folder: Path, place: Path, **said) -> Path:
    """A copy of a folder, its config.json changed; a dict changes a part of the config."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    for key, value in said.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"codec_config": {"num_quantizers": 3}}, "the codec has 3 codebooks, the model speaks 4"),
        ({"codec_config": {"codebook_size": 32}}, "the codec has 32 codes, the model's vocabulary 19"),
        ({"depth_decoder_config": {"num_codebooks": 5}}, "the depth decoder's codebooks or vocabulary are not"),
        ({"audio_token_id": 7}, r"config.json says <\|AUDIO\|> is 7, the tokenizer 258"),
        ({"text_vocab_size": 200}, "the tokenizer has ids up to 259, the model's text 200"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_weight_is_read(folder, tmp_path, said, complaint):
    bad = changed(folder, tmp_path / "bad", **said)
    for file in bad.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match=complaint) as error:
        check_model(bad)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad")
    (bad / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: missing"):
        check_model(bad)


def test_missing_weights_are_named(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"the weights lack backbone_model.layers.2"):
        load_model(bad)
    bad = changed(folder, tmp_path / "codec", codec_config={"num_hidden_layers": 2})
    with pytest.raises(InputError, match=r"the weights lack codec_model\..*layers.1"):
        load_model(bad)


def test_another_models_folder_is_refused(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad", architectures=["LlamaForCausalLM"])
    with pytest.raises(InputError, match="elocute.json: expected beside"):
        check_model(bad)
    bad = changed(folder, tmp_path / "other", model_type="llama")
    with pytest.raises(InputError, match="config.json: model_type: expected csm, got 'llama'"):
        check_model(bad)
    bad = changed(folder, tmp_path / "without")
    (bad / "processor_config.json").unlink()
    (bad / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="without: not CSM's processor"):
        check_model(bad)
