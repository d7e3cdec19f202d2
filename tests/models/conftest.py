"""What tests of adapters share, see adapter_checks.py; their modules have a fixture `folder`, maybe TURNS and GROUP."""

import json
from pathlib import Path

import pytest

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.models import load_model
from elocute.rollout import Sampling, sample_groups

WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")
TURNS = [
    [("user", "<|audio|>")],
    [("user", "hello")],
    [("system", "Your Name: Luke"), ("user", "<|audio|>the"), ("assistant", "hello"), ("user", "speak<|audio|>")],
]
"""A question that is heard, one that is read, and a conversation with both."""


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory) -> Path:
    """Rows with an answer to learn and one to unlearn; of the recordings, the user's are asked with."""
    home = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // 2], rate)
    answers = {"sft_target_text": "hel", "sft_target_audio": "1.wav", "rejected_text": "the", "rejected_audio": "2.wav"}
    lines = []
    for turns in getattr(request.module, "TURNS", TURNS):
        heard = iter(("0.wav", "2.wav"))
        audios = [
            next(heard) if role == "user" else "1.wav" for role, text in turns for _ in range(text.count("<|audio|>"))
        ]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append({"messages": messages, "audios": audios, **answers})
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def prompts(lm, rows) -> list:
    audio = EncodedAudio(lm.codec)
    return [lm.encode_prompt(row, audio) for row in read_rows(rows)]


@pytest.fixture(scope="module")
def groups(request, lm, prompts) -> list:
    """Rollouts of each prompt, GROUP of them."""
    from tests.models.adapter_checks import LENGTH, TEMPERATURE  # the training that it brings with it takes a second

    size = getattr(request.module, "GROUP", 3)
    seeds = [[100 * prompt + number for number in range(size)] for prompt in range(len(prompts))]
    return sample_groups(lm, prompts, seeds, Sampling(LENGTH, TEMPERATURE))
