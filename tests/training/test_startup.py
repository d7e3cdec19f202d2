"""What is wrong with rows is said before the first step, all of it at once, and nothing is left behind."""

import json
import re

import numpy as np
import pytest

from elocute.data.audio import save_wav
from elocute.errors import InputError
from elocute.recipe import load_recipe
from elocute.training.trainer import Trainer

TEXT = [{"role": "user", "content": "two plus two"}]
AUDIO = [{"role": "user", "content": "<|audio|>"}]


@pytest.fixture
def start(tiny_folder, tmp_path):
    """Starts a run on rows; gives the lines of the error, each without the file's name."""
    file = tmp_path / "rows.jsonl"
    time = np.arange(22_050) / 22_050
    save_wav(tmp_path / "tone.wav", (0.3 * np.sin(440 * 2 * np.pi * time)).astype(np.float32), 22_050)
    (tmp_path / "noise.wav").write_text("no sound")
    save_wav(tmp_path / "silence.wav", np.zeros(8000, np.float32), 16_000)

    def start(rows: list[dict], *overrides: str) -> list[str]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [f"model={tiny_folder}", f"data.train={file}", "data.eval=null", f"run_dir={tmp_path / 'run'}"]
        given += [f"data.cache={tmp_path / 'cache'}", "report=false", "rollout.prompts_per_step=2", "steps=1"]
        with pytest.raises(InputError) as caught:
            Trainer(load_recipe("recipes/starter/wavalign.yaml", [*given, *overrides]))
        assert not (tmp_path / "run").exists()
        lines = str(caught.value).split("\n")
        assert all(line.startswith(f"{file}:") for line in lines)
        return [line.removeprefix(f"{file}:") for line in lines]

    return start


def row(messages=TEXT, **fields) -> dict:
    good = {"messages": messages, "answer": "four", "sft_target_text": "four", "sft_target_audio": "tone.wav"}
    return good | fields


def test_questions(start, tmp_path):
    bad = [{"role": "user", "content": "two plus two <|answer_end|>"}]
    rows = [
        row(), row(bad), row(AUDIO, audios=["noise.wav"]), row(AUDIO, audios=["tone.wav"]),
        row(AUDIO, audios=["silence.wav"]),
    ]  # fmt: skip
    lines = start(rows)
    assert len(lines) == 3
    assert lines[0] == "2: messages: the text holds the control token '<|answer_end|>'"
    assert lines[1].startswith(f"3: audios: {tmp_path / 'noise.wav'}: not a readable audio file")
    assert lines[2].startswith(f"5: audios: {tmp_path / 'silence.wav'}: audio is silent")
    assert start(rows, "objective.mixing={kind: fixed, value: 1}") == lines  # also where no answer is learnt


def test_prompts_leave_room_for_the_longest_answer(start):
    words = ["two plus two", "two plus two plus two plus two", "two plus two plus two"]
    rows = [row([{"role": "user", "content": text}]) for text in words]
    [line] = start(rows, "rollout.max_new_tokens=512")
    room, longest = map(int, re.search(r"^1: .*expected at most (\d+), got 512.* the longest (\d+)", line).groups())
    assert room + longest == 512  # the model's context
    [line] = start(rows, f"rollout.max_new_tokens={room + 1}")
    assert line == (
        f"2: max_new_tokens: expected at most {room}, got {room + 1}, or shorter prompts: this one has {longest} "
        f"tokens, the longest {longest}, the model's context holds 512"
    )


def test_answers_to_learn(start, tmp_path):
    rows = [
        row(sft_target_audio="noise.wav"), row(sft_target_audio=None), row(sft_target_text=None), row(),
        row(sft_target_text="four <|audio_3|>"),
    ]  # fmt: skip
    lines = start(rows)
    assert [line.split(": ")[:2] for line in lines] == [
        ["1", "sft_target_audio"], ["2", "sft_target_audio"], ["3", "sft_target_text"], ["5", "sft_target_text"],
    ]  # fmt: skip
    assert "not a readable audio file" in lines[0] and "it always speaks" in lines[1]
    assert "it always writes" in lines[2] and "'<|audio_3|>'" in lines[3]


@pytest.mark.parametrize("objective", ["hybrid", "dpo"])
def test_answers_fit_into_the_context_behind_their_prompts(start, tmp_path, objective):
    time = np.arange(60 * 22_050) / 22_050
    save_wav(tmp_path / "long.wav", (0.3 * np.sin(440 * 2 * np.pi * time)).astype(np.float32), 22_050)
    other = {"rejected_text": "five", "rejected_audio": "tone.wav"}
    dpo = ["objective={kind: dpo, mode: offline, scope: all}", "rewards=[]"] if objective == "dpo" else []
    [line] = start([row(**other), row(**other | {"sft_target_audio": "long.wav"})], *dpo)
    assert re.fullmatch(r"2: sft_target: too long: at least \d{3,4} tokens, the model's context holds 512", line)


def test_columns_that_rewards_read(start, tmp_path):
    rows = [row(answer=None), row(), row(answer="?!"), row(answer=[])]
    (tmp_path / "none").mkdir()
    lines = start(rows, f"model={tmp_path / 'none'}")  # before the model is opened: there is none here
    assert [line.split(": ")[:2] for line in lines] == [["1", "answer"], ["3", "answer"], ["4", "answer"]]
    assert lines[0] == "1: answer: expected an accepted answer or a list of them, found None"
    assert lines[1] == "3: answer: expected words, found '?!'"
    assert start(rows, "rewards.0.match=number")[1] == "3: answer: expected one number, found '?!'"
