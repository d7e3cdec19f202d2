"""Textless models: published folders, prompts and continuations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import InterleavedLM, UnitLM, check_model, load_model
from elocute.models.layout import Layout
from elocute.training.policy import check_head
from tests.models.unit_folders import CONTEXT, network, settings, slamkit, twist
from tests.speech import unit_models
from tests.speech.unit_models import UNITS, speech


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory) -> Path:
    return unit_models.unit_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def twist_lm(codec_folder, tmp_path_factory) -> UnitLM:
    return load_model(twist(tmp_path_factory.mktemp("twist"), codec_folder)[0])


@pytest.fixture(scope="module")
def slam_lm(codec_folder, tmp_path_factory) -> UnitLM:
    return load_model(slamkit(tmp_path_factory.mktemp("slam"), codec_folder)[0])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sound") / "two.wav"
    save_wav(file, speech(1.6, seed=4), 16000)
    return file


@pytest.fixture
def audio(slam_lm, tmp_path) -> EncodedAudio:
    return EncodedAudio(slam_lm.codec, tmp_path / "cache")


def row(content="<|audio|>", **fields) -> Example:
    return Example("x", (Message("user", content),), file="rows.jsonl", line=7, **fields)


def inline(lm: UnitLM, units) -> AudioRef:
    return AudioRef(Path("said.wav"), units=tuple(units), codec=lm.codec.digest)


# published folders


def test_a_twist_folder_is_read_by_its_offset(codec_folder, twist_lm, tmp_path):
    lm, (_, original) = twist_lm, twist(tmp_path / "again", codec_folder)
    ids = torch.arange(UNITS)[None] + 4
    assert torch.equal(lm.model(ids).logits, original(ids).logits)
    assert (lm.bos, lm.layout.first_unit, lm.layout.answer_end, lm.layout.open_ended) == (None, 4, None, True)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("qwen2", ("lm_head.weight",)),
        ("qwen2", ("model.embed_tokens.weight",)),
        ("qwen2", ()),
        ("opt", ("lm_head.weight",)),
        ("opt", ("model.decoder.embed_tokens.weight",)),
        ("llama", ()),
    ],
)
def test_a_slamkit_folder_is_read_without_its_code(codec_folder, tmp_path, kind, left_out):
    folder, original = slamkit(tmp_path, codec_folder, kind, left_out)
    lm = load_model(folder)
    ids = torch.arange(UNITS + 2)[None]
    assert torch.allclose(lm.model(ids).logits, original(ids).logits, atol=1e-6)
    assert (lm.bos, lm.layout.first_unit, lm.layout.answer_end) == (1, 2, 1)
    tied = lm.head().weight is lm.model.get_input_embeddings().weight
    assert tied == (kind != "llama")


def test_any_causal_lm_over_units(codec_folder, tmp_path):
    network("llama", UNITS + 10).save_pretrained(tmp_path)
    lm = load_model(settings(tmp_path, codec_folder, unit_0=5, bos=0, eos=3, open_ended=False))
    assert (lm.bos, lm.layout.first_unit, lm.layout.answer_end, lm.layout.open_ended) == (0, 5, 3, False)
    check_model(tmp_path)


@pytest.mark.parametrize("made", [twist, slamkit])
def test_a_saved_model_has_the_layout_it_came_in(codec_folder, tmp_path, made):
    folder, _ = made(tmp_path / "published", codec_folder)
    lm = load_model(folder)
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lm.save(tmp_path / "saved")
    again, ids = load_model(tmp_path / "saved"), torch.arange(UNITS)[None] + 2
    assert torch.allclose(again.model(ids).logits, lm.model(ids).logits, atol=1e-5)
    assert not torch.allclose(again.model(ids).logits, load_model(folder).model(ids).logits, atol=1e-2)
    names = [set(load_file(where / "model.safetensors")) for where in (folder, tmp_path / "saved")]
    assert names[0] == names[1]
    configs = [json.loads((where / "config.json").read_text()) for where in (folder, tmp_path / "saved")]
    assert configs[0] == configs[1] if made is slamkit else configs[1]["offset"] == 4
    assert (again.bos, again.layout, again.codec.digest) == (lm.bos, lm.layout, lm.codec.digest)
    assert again.settings | {"codec": ""} == lm.settings | {"codec": ""}


@pytest.mark.parametrize("lm", ["twist_lm", "slam_lm"])
def test_logits_are_the_head_of_the_hidden_states(lm, request):
    lm = request.getfixturevalue(lm)
    check_head(lm, "")
    ids = torch.arange(UNITS)[None] + 2
    assert torch.allclose(lm.head()(lm.hidden(input_ids=ids)[0]), lm.model(ids).logits, atol=1e-6)


# what is given and what is said


def test_a_prompt_is_bos_and_the_units_of_the_recording(twist_lm, slam_lm, sound, audio):
    units = slam_lm.codec.encode(speech(1.6, seed=4), 16000)
    heard = audio.units(AudioRef(sound))
    assert abs(len(heard) - len(units)) <= 4 and (np.diff(heard) != 0).all()
    example = row(audios=(AudioRef(sound),))
    assert slam_lm.encode_prompt(example, audio).tolist() == [1, *(heard + 2)]
    assert twist_lm.encode_prompt(example, audio).tolist() == (heard + 4).tolist()
    start = AudioRef(sound, seconds=0.8)
    assert slam_lm.encode_prompt(row(audios=(start,)), audio).tolist() == [1, *(audio.units(start) + 2)]
    both = row("<|audio|> <|audio|>", audios=(AudioRef(sound), start))
    assert slam_lm.encode_prompt(both, audio).tolist() == [1, *(heard + 2), *(audio.units(start) + 2)]


@given(st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=30))
def test_every_token_of_a_continuation_is_a_sampled_one_of_speech(twist_lm, slam_lm, units):
    """Also the very units that were sampled, with whatever repeats they have."""
    for lm, end in ((twist_lm, []), (slam_lm, [1])):
        audio = EncodedAudio(lm.codec)
        example = row(audios=(inline(lm, [3]),), target_audio=inline(lm, units), rejected_audio=inline(lm, units[::-1]))
        for tokens, said in (
            (lm.encode_target(example, audio), units),
            (lm.encode_rejected(example, audio), units[::-1]),
        ):
            assert tokens.ids.tolist() == [lm.layout.first_unit + unit for unit in said] + end
            assert tokens.action.all() and not tokens.text.any()
            cursor = lm.layout.read(tokens.ids)
            cursor.close()
            assert cursor.broken is None and cursor.units == said and cursor.done == bool(end)


def test_an_utterance_for_its_likelihood(twist_lm, slam_lm):
    for lm, given_, rest in ((twist_lm, [4 + 7], [4 + 8, 4 + 9]), (slam_lm, [1], [9, 10, 11, 1])):
        prompt, tokens = lm.encode_utterance(inline(lm, [7, 8, 9]), EncodedAudio(lm.codec))
        assert (prompt.tolist(), tokens.ids.tolist()) == (given_, rest)
    assert len(slam_lm.encode_utterance(inline(slam_lm, [7]), EncodedAudio(slam_lm.codec))[1]) == 2
    with pytest.raises(InputError, match="said.wav: one unit alone has no likelihood"):
        twist_lm.encode_utterance(inline(twist_lm, [7]), EncodedAudio(twist_lm.codec))


@pytest.mark.parametrize("lm", ["twist_lm", "slam_lm"])
def test_defect_align_7_bos_is_never_lost_and_no_tokens_are_written_into(lm, request):
    """A prompt is whole or refused; encoding twice gives the same, whatever is done to the first copy."""
    lm = request.getfixturevalue(lm)
    audio, bos = EncodedAudio(lm.codec), [] if lm.bos is None else [lm.bos]
    longest = CONTEXT - 1 - len(bos)
    for count in (1, longest):
        units = [unit % UNITS for unit in range(count)]
        example = row(audios=(inline(lm, units),))
        ids = lm.encode_prompt(example, audio)
        assert ids.tolist() == [*bos, *(lm.layout.first_unit + unit for unit in units)]
        ids[:] = -100
        assert lm.encode_prompt(example, audio).tolist()[: len(bos)] == bos
        prompt, tokens = lm.encode_utterance(inline(lm, [0, 1, *units[2:]]), audio)
        again = lm.encode_utterance(inline(lm, [0, 1, *units[2:]]), audio)[1].ids.clone()
        tokens.ids[:] = -100
        assert lm.encode_utterance(inline(lm, [0, 1, *units[2:]]), audio)[1].ids.equal(again)
    units = [unit % UNITS for unit in range(longest + 1)]
    said = rf"rows.jsonl:7: audios: too long: at least {CONTEXT + 1} tokens, the model's context holds {CONTEXT}$"
    with pytest.raises(InputError, match=said):
        lm.encode_prompt(row(audios=(inline(lm, units),)), audio)
    half = inline(lm, units[: CONTEXT // 2 + 1])
    with pytest.raises(InputError, match="rows.jsonl:7: sft_target_audio: too long"):
        lm.encode_target(row(audios=(half,), target_audio=half), audio)
    with pytest.raises(InputError, match="said.wav: too long"):
        lm.encode_utterance(inline(lm, [*units, 0, 1]), audio)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (row("hello"), "messages: the model hears speech only, it cannot read 'hello'"),
        (row("<|audio|> go on", audios=(AudioRef(Path("x.wav")),)), "it cannot read 'go on'"),
        (row(""), "audios: expected a recording to continue"),
        (row(audios=(AudioRef(Path("x.wav")),)), "audios: x.wav: audio file not found"),
    ],
)
def test_what_a_textless_model_cannot_hear_is_refused(slam_lm, audio, example, said):
    with pytest.raises(InputError, match="^rows.jsonl:7: ") as caught:
        slam_lm.encode_prompt(example, audio)
    assert said in str(caught.value)


def test_a_row_without_a_continuation_is_refused(slam_lm, audio):
    example = row(audios=(inline(slam_lm, [1]),))
    for field, encode in (("sft_target_audio", slam_lm.encode_target), ("rejected_audio", slam_lm.encode_rejected)):
        with pytest.raises(InputError, match=f"rows.jsonl:7: {field}: expected the continuation's speech"):
            encode(example, audio)


def test_a_continuation_is_heard_without_its_repeats(slam_lm):
    said = slam_lm.decode(torch.tensor([5, 5, 9, 9, 9, 5]))
    assert (said.text, said.broken, said.sample_rate) == ("", None, 16000)
    assert np.array_equal(said.waveform, slam_lm.codec.decode([3, 7, 3]))
    assert slam_lm.decode(torch.tensor([1])).broken == "empty audio"
    assert slam_lm.decode(torch.tensor([5, 0, 9])).broken == "token 1 is no speech unit where one must stand"


def test_an_open_ended_answer_may_be_cut_another_has_an_end():
    layout = Layout("speech-only", first_unit=2, n_units=5, text_end=None, answer_end=1, open_ended=True)
    for ids, whole, closed in (([2, 3], True, False), ([2, 3, 1], True, True), ([2, 0], False, False)):
        for this, fine in ((layout, whole), (replace(layout, open_ended=False), closed)):
            cursor = this.read(ids)
            cursor.close()
            assert (cursor.broken is None) == fine
            assert not any(cursor.text) and all(cursor.action)
    with pytest.raises(ValueError, match="an answer without answer_end is open-ended"):
        replace(layout, answer_end=None, open_ended=False)
    with pytest.raises(ValueError, match="only speech-only answers are textless"):
        replace(layout, ratio="text-first")


# bad input


@pytest.mark.parametrize(
    ("said", "more"),
    [
        (
            "csm, moshi or qwen2_5_omni, got 'streams'",
            {"kind": "streams"},
        ),
        ("ratio: unknown key", {"ratio": [[1, 10]]}),
        ("codec: expected the codec's folder, got 3", {"codec": 3}),
        ("unit_0: expected a token's id, got None", {"unit_0": None}),
        ("bos: expected a token's id, got 'x'", {"bos": "x"}),
        ("eos: expected a token's id, got True", {"eos": True}),
        ("open_ended: expected true or false, got 1", {"open_ended": 1}),
        ("nothing but the length ends an answer without eos", {"open_ended": False}),
        ("bos 5 lies among the units, from 4 on", {"bos": 5}),
        ("the model has 24 embeddings, its codec needs ids up to 24", {"unit_0": 5}),
        ("the model has 24 embeddings, its codec needs ids up to 99", {"eos": 99}),
        ("nowhere: expected unit-codec there", {"codec": "nowhere"}),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_before_its_weights_are_read(codec_folder, tmp_path, said, more):
    folder, _ = twist(tmp_path, codec_folder)
    check_model(folder)
    (folder / "elocute.json").write_text(json.dumps({"kind": "units", "codec": str(codec_folder)} | more))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        check_model(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_and_configs_that_do_not_fit_are_refused(codec_folder, tmp_path):
    folder, _ = slamkit(tmp_path / "a", codec_folder, left_out=("model.norm.weight",))
    with pytest.raises(InputError, match="the weights lack model.norm.weight"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "speech_language_model"}))
    with pytest.raises(InputError, match="not the config of a causal LM over units"):
        check_model(folder)
    folder, _ = twist(tmp_path / "b", codec_folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 72}))
    with pytest.raises(InputError, match="not a model that transformers can load"):
        load_model(folder)


@pytest.mark.parametrize("safe", [True, False])
def test_a_missing_shard_is_named_before_anything_is_loaded(codec_folder, tmp_path, monkeypatch, safe):
    folder, model = twist(tmp_path, codec_folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    if not safe:  # as transformers wrote before
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        places = {name: file.replace("safetensors", "bin") for name, file in index["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        for file in (*folder.glob("model-*"), folder / "model.safetensors.index.json"):
            file.rename(file.with_suffix(".bin")) if file.suffix == ".safetensors" else file.unlink()
    shard = sorted(folder.glob("model-*"))[1]
    shard.unlink()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # not come to
    for load in (check_model, load_model):
        with pytest.raises(InputError, match=f"{shard.name}: missing, .*index.json names it") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_weights_that_the_config_has_no_place_for_are_refused(codec_folder, tmp_path):
    """As those of layers that a config.json leaves out; what old checkpoints hold beside weights is no such weight."""
    folder, model = twist(tmp_path, codec_folder)
    file = folder / "model.safetensors"
    inv_freq, version = "model.decoder.layers.0.self_attn.rotary_emb.inv_freq", "model.decoder.version"
    save_file(load_file(file) | {inv_freq: torch.ones(4), version: torch.ones(1)}, file, {"format": "pt"})
    ids = torch.arange(UNITS)[None] + 4
    assert torch.equal(load_model(folder).model(ids).logits, model(ids).logits)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"the weights hold model\.decoder\.layers\.1\.\S+, for which") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_the_kind_chooses_the_model(tiny_lm, twist_lm, tmp_path):
    tiny_lm.save(tmp_path)
    assert isinstance(load_model(tmp_path), InterleavedLM) and isinstance(twist_lm, UnitLM)
    check_model(tmp_path)
