"""What goes into a prompt and into a supervised answer, and what is refused there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import load_model, load_speaker
from elocute.models.interleaved import InterleavedLM

FOUR = AudioRef(Path("starter/data/answers.safetensors"), "four")


@pytest.fixture
def audio(tiny_lm, tmp_path) -> EncodedAudio:
    return EncodedAudio(tiny_lm.codec, tmp_path / "cache")


def example(content="two plus two", **fields) -> Example:
    return Example("x", (Message("user", content),), file="rows.jsonl", line=7, **fields)


@pytest.mark.parametrize("token", ["<|answer_end|>", "<|assistant|>", "<|audio_3|>"])
def test_a_question_cannot_hold_control_tokens(tiny_lm, audio, token):
    with pytest.raises(InputError, match="rows.jsonl:7: messages: the text holds the control token") as error:
        tiny_lm.encode_prompt(example(f"two plus two {token}"), audio)
    assert token in str(error.value)


@pytest.mark.parametrize("name", ["missing.wav", "noise.wav"])
def test_audio_that_cannot_be_used_names_its_row_and_field(tiny_lm, audio, tmp_path, name):
    (tmp_path / "noise.wav").write_text("no sound")
    ref = AudioRef(tmp_path / name)
    with pytest.raises(InputError, match=f"^rows.jsonl:7: audios: {ref}: "):
        tiny_lm.encode_prompt(example("<|audio|>", audios=(ref,)), audio)
    with pytest.raises(InputError, match=f"^rows.jsonl:7: sft_target_audio: {ref}: "):
        tiny_lm.encode_target(example(target_text="four", target_audio=ref), audio)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "sft_target_audio: expected the answer's speech, it always speaks"),
        ({"target_text": "four"}, "sft_target_audio: expected the answer's speech, it always speaks"),
        ({"target_audio": FOUR}, "sft_target_text: expected the answer's text, it always writes"),
        ({"target_text": "four <|audio_3|>", "target_audio": FOUR}, "sft_target_text: the text holds the control"),
    ],
)
def test_an_answer_to_learn_is_written_and_spoken(tiny_lm, audio, fields, said):
    with pytest.raises(InputError) as caught:
        tiny_lm.encode_target(example(**fields), audio)
    assert str(caught.value).startswith(f"rows.jsonl:7: {said}")


def test_a_rejected_answer_is_laid_out_and_refused_like_one_to_learn(speaking_lm, audio):
    row = example(target_text="one", target_audio=FOUR, rejected_text="four", rejected_audio=FOUR)
    as_target = speaking_lm.encode_target(example(target_text="four", target_audio=FOUR), audio)
    assert speaking_lm.encode_rejected(row, audio).ids.tolist() == as_target.ids.tolist()
    for fields, said in [
        ({}, "rejected_audio: expected the answer's speech"),
        ({"rejected_audio": FOUR}, "rejected_text: expected the answer's text"),
        ({"rejected_text": "four", "rejected_audio": replace(FOUR, cut=True)}, "the answer was cut before its end"),
        ({"rejected_text": "<|audio_3|>", "rejected_audio": FOUR}, "rejected_text: the text holds the control token"),
        (
            {"rejected_text": "four", "rejected_audio": AudioRef(Path("no.wav"))},
            "rejected_audio: no.wav: audio file not found",
        ),
    ]:
        with pytest.raises(InputError, match=f"^rows.jsonl:7: {said}"):
            speaking_lm.encode_rejected(example(target_text="one", target_audio=FOUR, **fields), audio)


def test_an_answer_to_learn_reads_back(speaking_lm, audio):
    tokens = speaking_lm.encode_target(example(target_text="four", target_audio=FOUR), audio)
    cursor = speaking_lm.layout.read(tokens.ids)
    assert cursor.broken is None and cursor.done
    assert speaking_lm.tokenizer.decode(cursor.text_ids).strip() == "four"
    assert cursor.units == audio.units(FOUR).tolist()
    utterance = speaking_lm.decode(tokens.ids)
    assert (utterance.text, utterance.broken) == ("four", None) and len(utterance.waveform)


def test_speech_only_answers_need_no_text(tiny_lm, audio):
    layout = replace(tiny_lm.layout, ratio="speech-only")
    lm = InterleavedLM(tiny_lm.model, tiny_lm.tokenizer, layout, tiny_lm.codec, tiny_lm.settings)
    assert lm.layout.read(lm.encode_target(example(target_audio=FOUR), audio).ids).broken is None
    with pytest.raises(InputError, match="it always speaks"):
        lm.encode_target(example(target_text="four"), audio)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_a_model_to_talk_with(tiny_lm, tmp_path, saved):
    tiny_lm.save(tmp_path)
    load_model(tmp_path, dtype=saved).save(tmp_path / "saved")
    weight = load_speaker(tmp_path / "saved").head().weight
    expected = (saved, "cuda") if torch.cuda.is_available() else (torch.float32, "cpu")
    assert (weight.dtype, weight.device.type) == expected
