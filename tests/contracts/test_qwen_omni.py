"""Qwen2.5-Omni's parts against transformers' own whole: the same folder, the same logits, words, codes and sound."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniForConditionalGeneration as Whole

from elocute.data.types import Message
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch
from elocute.models.omni import Omni
from elocute.models.omni_lm import OmniLM, Prompt
from elocute.rollout import Sampling, sample_groups
from elocute.speech.qwen_omni import Ear, Voice
from elocute.speech.units import BrokenUnits
from elocute.training.policy import Policy
from tests.contracts import qwen_omni
from tests.contracts.spoil import drop

ENDS = [qwen_omni.END, 256, *range(0, 256, 5)]
NOISE = np.random.default_rng(0).normal(size=40000).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return qwen_omni.checkpoint(tmp_path_factory.mktemp("models") / "Qwen2.5-Omni", ends=ENDS)


@pytest.fixture(scope="module")
def lm(folder) -> OmniLM:
    return load_model(folder)


def whole(folder: Path) -> Whole:
    """As transformers has it; its own from_pretrained cannot say what it did not find."""
    model, found = super(Whole, Whole).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not any(found.values())
    model.load_speakers(folder / "spk_dict.pt")
    return model.eval()


@pytest.fixture(scope="module")
def original(folder) -> Whole:
    return whole(folder)


def asked(lm: OmniLM, text: str, *sounds: np.ndarray) -> tuple[Prompt, dict]:
    """A prompt, and transformers' inputs for the same."""
    heard = [lm.ear.hear(sound, 16000) for sound in sounds]
    ids = torch.tensor(lm.template.ids([Message("user", "<|audio|>" * len(sounds) + text)], [len(h) for h in heard]))
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if sounds:
        mel = lm.ear.mel(list(sounds), sampling_rate=16000, padding="max_length", return_attention_mask=True,
                         return_tensors="pt")  # fmt: skip
        inputs |= {"input_features": mel.input_features, "feature_attention_mask": mel.attention_mask}
    return Prompt(ids, torch.cat([torch.zeros(0, qwen_omni.WIDTH), *heard])), inputs


def test_the_ear_hears_as_transformers_does(folder, original):
    ear = Ear.load(folder)
    for length in (40000, 16000, 799, 481):
        mel = ear.mel(NOISE[:length], sampling_rate=16000, padding="max_length", return_attention_mask=True,
                      return_tensors="pt")  # fmt: skip
        frames = int(mel.attention_mask.sum())
        assert torch.allclose(ear.log_mel(NOISE[:length], 16000), mel.input_features[0, :, :frames], atol=1e-6)
        expected = original.thinker.get_audio_features(mel.input_features, mel.attention_mask).last_hidden_state
        assert torch.allclose(ear.hear(NOISE[:length], 16000), expected, atol=1e-5)


def test_the_ear_resamples_and_has_its_limits(folder):
    ear = Ear.load(folder)
    time = np.arange(48000) / 48000
    sounds = {rate: np.sin(2 * np.pi * 300 * time[:rate]).astype(np.float32) for rate in (48000,)}
    slow = np.sin(2 * np.pi * 300 * np.arange(16000) / 16000).astype(np.float32)
    assert (ear.log_mel(sounds[48000], 48000) - ear.log_mel(slow, 16000))[:, 3:-3].abs().max() < 0.05
    with pytest.raises(InputError, match="lasts 10 ms, too short to be heard"):
        ear.hear(NOISE[:160], 16000)
    with pytest.raises(InputError, match="lasts 301.0 s, the model hears 300 s"):
        ear.hear(np.zeros(301 * 16000, dtype=np.float32), 16000)


def test_the_thinkers_logits_are_transformers(lm, original):
    for text, sounds in (("hello", ()), ("what was that?", (NOISE, NOISE[:9000]))):
        prompt, inputs = asked(lm, text, *sounds)
        hidden, _ = lm.hidden(**lm.prompt_inputs([prompt], "cpu"), use_cache=False)
        with torch.no_grad():
            assert torch.allclose(lm.head()(hidden), original.thinker(**inputs).logits, atol=1e-4)


def greedy(
    original: Whole, inputs: dict, steps: int = 30
) -> tuple[list[int], list[int], list[torch.Tensor], torch.Tensor]:
    """What transformers' own generate writes and says: ids, codes with their end, each one's logits [V], sound.

    The prompt is padded by one token: transformers 5.23 drops a mask of ones, and without a mask its talker leaves out
    what marks the beginning of the codes, which every padded prompt gets.
    """
    said, pad = {}, torch.nn.functional.pad
    inputs = inputs | {
        "input_ids": pad(inputs["input_ids"], (1, 0), value=256),
        "attention_mask": pad(inputs["attention_mask"], (1, 0)),
    }

    def listen(part: str):
        made = getattr(original, part).generate

        def generate(*args, **kwargs):
            told = made(*args, **kwargs | {"return_dict_in_generate": True, "output_logits": True})
            said[part] = told.sequences[0, kwargs["input_ids"].shape[1] :].tolist(), [one[0] for one in told.logits]
            return told if part == "thinker" else told.sequences

        return generate

    with pytest.MonkeyPatch.context() as patch:
        for part in ("thinker", "talker"):
            patch.setattr(getattr(original, part), "generate", listen(part))
        torch.manual_seed(0)
        sound = original.generate(
            **inputs, thinker_do_sample=False, talker_do_sample=False, talker_repetition_penalty=1.0,
            talker_eos_token_id=[25, 27], thinker_max_new_tokens=steps, talker_max_new_tokens=steps,
        )[1]  # fmt: skip
    (written, of_text), (codes, of_speech) = said["thinker"], said["talker"]
    return written, codes, [*of_text, *of_speech], sound


def test_greedy_answers_are_those_of_generate(lm, original):
    """Words, codes, what each was likely, and sound; prompts of different lengths in one batch."""
    cases = [asked(lm, text, *sounds) for text, sounds in (
        ("hello", ()), ("a", (NOISE,)), ("and this?", (NOISE[:9000],)), ("xyzzy", ()), ("tell me", ()),
        ("both", (NOISE[:5000], NOISE[9000:])), ("why", ()),
    )]  # fmt: skip
    answers = sample_groups(lm, [prompt for prompt, _ in cases], [[0]] * len(cases), Sampling(30, 1e-4))
    lengths, sounds = [], 0
    for (_, inputs), [answer] in zip(cases, answers, strict=True):
        reply = lm.layout.read(answer.tokens.ids)
        if not reply.text_ids:  # transformers has nothing to say here, and fails
            assert reply.broken == "nothing was written that could be spoken"
            continue
        written, codes, logits, sound = greedy(original, inputs)
        assert reply.written == written
        if len(written) == 30:
            continue
        assert reply.codes == codes
        lengths.append((len(written), len(codes)))
        every = torch.ones(1, len(answer.tokens), dtype=torch.bool)
        with torch.no_grad():
            scored = Policy(lm)(make_batch([answer.prompt], [answer.tokens], every, "cpu"))[0]
        likely = [torch.log_softmax(one, -1)[id] for one, id in zip(logits, answer.tokens.ids, strict=True)]
        assert torch.allclose(scored, torch.stack(likely), atol=1e-4)
        if reply.units:
            assert np.allclose(lm.decode(answer.tokens.ids).waveform, sound.numpy(), atol=1e-5)
            sounds += 1
    assert len(set(lengths)) > 2 and sounds > 1  # answers long and short


def test_the_voice_says_the_same_codes_alike(folder):
    voice, other = Voice.load(folder), Voice.load(folder, "Ethan")
    state = torch.get_rng_state()
    sound = voice.decode(range(12))
    assert sound.shape == (480 * 12,) and sound.dtype == np.float32 and np.abs(sound).max() <= 1
    assert np.array_equal(sound, voice.decode(range(12))) and torch.equal(state, torch.get_rng_state())
    assert not np.allclose(sound, other.decode(range(12)), atol=1e-4)
    assert len(voice.decode([])) == 0 and voice.digest == other.digest and voice.n_units == qwen_omni.CODES + 1
    with pytest.raises(BrokenUnits, match=r"expected 0 … 21, got 3 … 22"):
        voice.decode([3, 22])
    with pytest.raises(BrokenUnits, match="300 codes: the voice can say 256 at most"):
        voice.decode([1] * 300)


def test_a_recording_cannot_be_a_target(lm, tmp_path):
    with pytest.raises(InputError, match="Qwen2.5-Omni is published without the encoder of its codes"):
        lm.codec.encode(NOISE, 16000)


def test_saved_as_published(folder, tmp_path):
    network = Omni.load(folder)
    with torch.no_grad():
        network.talker.codec_head.weight += 1
    network.save(tmp_path / "saved")
    before, after = weights(folder), weights(tmp_path / "saved")
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["talker.codec_head.weight"]
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "saved").iterdir()} == names
    assert whole(tmp_path / "saved").talker.codec_head.weight.equal(network.talker.codec_head.weight)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(folder: Path, **said) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in said.items():
        *path, last = key.split("__")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


BAD = {
    "writes only": ({"enable_audio_output": False}, r"enable_audio_output: false: this one writes only"),
    "another model": ({"model_type": "qwen2"}, r"config.json: not the config of a Qwen2.5-Omni: model_type: expected"),
    "vocabulary": ({"thinker_config__text_config__vocab_size": 260}, r"the shape \[260, 48\], got \[296, 48\]"),
    "codes": ({"talker_config__tts_codec_end_token_id": 5}, r"tts_codec_end_token_id: expected 22 … 31, behind the co"),
    "audio token": ({"thinker_config__audio_token_index": 7}, r"audio_token_index 7 is no token of its own"),
    "layers": ({"talker_config__num_hidden_layers": 3}, r"the weights lack talker.model.layers.2"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD)
def test_folders_that_do_not_fit(copy, wrong):
    said, complaint = BAD[wrong]
    change(copy, **said)
    with pytest.raises(InputError, match=complaint) as error:
        check_model(copy)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_foreign(copy):
    (copy / "elocute.json").write_text('{"kind": "qwen2_5_omni", "speaker": "Nobody"}')
    with pytest.raises(InputError, match=r"spk_dict.pt: no such speaker: 'Nobody'; there: Chelsie, Ethan"):
        check_model(copy)
    (copy / "elocute.json").write_text('{"kind": "qwen2_5_omni", "voice": "Ethan"}')
    with pytest.raises(InputError, match=r"elocute.json: voice: unknown key"):
        check_model(copy)
    (copy / "elocute.json").unlink()
    (copy / "spk_dict.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"spk_dict.pt: not the speakers of a Qwen2.5-Omni"):
        check_model(copy)
    (copy / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00004.safetensors: missing"):
        check_model(copy)


def test_weights_of_no_known_part(copy):
    file = copy / "model-00001-of-00004.safetensors"
    state = load_file(file)
    save_file(state | {"ghost.weight": torch.zeros(2)}, file)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost.weight"] = file.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"the weights hold ghost.weight, for which a Qwen2.5-Omni has no place"):
        check_model(copy)


def test_computed_buffers_of_other_releases_are_copied_as_they_are(copy, tmp_path):
    file = copy / "model-00004-of-00004.safetensors"
    dit, bigvgan = "token2wav.code2wav_dit_model", "token2wav.code2wav_bigvgan_model"
    names = ["thinker.model.rotary_emb.inv_freq", f"{dit}.rotary_embed.inv_freq", f"{bigvgan}.up.filter"]
    save_file(load_file(file) | {name: torch.ones(3) for name in names}, file)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(names, file.name)
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(copy).save(tmp_path / "saved")
    assert all(weights(tmp_path / "saved")[name].equal(torch.ones(3)) for name in names)


def test_a_tied_head_is_not_in_the_weights(copy, tmp_path):
    change(copy, thinker_config__tie_word_embeddings=True)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    place = copy / index["weight_map"].pop("thinker.lm_head.weight")
    state = load_file(place)
    state.pop("thinker.lm_head.weight")
    save_file(state, place)
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    network = Omni.load(copy)
    assert network.thinker.lm_head.weight is network.thinker.model.embed_tokens.weight
    network.save(tmp_path / "saved")
    assert set(weights(tmp_path / "saved")) == set(weights(copy))
    assert whole(tmp_path / "saved").thinker.lm_head.weight.equal(network.thinker.lm_head.weight)


DIT = "token2wav.code2wav_dit_model"


@pytest.mark.parametrize("name", ["thinker.audio_tower.conv1.weight", f"{DIT}.text_embed.codec_embed.weight"])
def test_an_ear_or_a_voice_that_is_not_whole_is_named_before_anything_is_loaded(copy, monkeypatch, name):
    drop(copy, name)
    monkeypatch.setattr(Omni, "load", None)  # not come to
    for load in (check_model, load_model):
        with pytest.raises(InputError, match=f"the weights lack {name.split('.', 2 if 'tower' in name else 1)[-1]}"):
            load(copy)
