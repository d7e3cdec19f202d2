"""`elocute encode`: what training would encode is in the cache; what cannot be encoded is said, a line each."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from elocute import cli
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows

RECIPE = "recipes/starter/wavalign.yaml"


@pytest.fixture
def rows(tmp_path) -> Path:
    """A spoken question with a spoken answer, and twenty written ones, of which the last has two recordings."""
    for name, sound in (("q", "sum-0000.question"), ("a", "sum-0000.answer"), ("b", "count-0000.answer")):
        shutil.copy(f"starter/audio/heldout-{sound}.wav", tmp_path / f"{name}.wav")
    lines = [{"id": str(i), "messages": [{"role": "user", "content": "two and four"}]} for i in range(21)]
    answer = {"sft_target_text": "six", "sft_target_audio": "a.wav"}
    lines[0] |= {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["q.wav"]} | answer
    lines[20] |= answer | {"rejected_text": "five", "rejected_audio": "b.wav"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def encode(speaking_folder, rows, monkeypatch, capsys):
    """Types the command: (exit status, stdout, stderr)."""

    def run(*words):
        own = ["--data", str(rows), f"model={speaking_folder}", f"data.cache={rows.parent / 'cache'}"]
        monkeypatch.setattr(sys, "argv", ["elocute", "encode", RECIPE, *own, *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


def test_a_file_is_encoded_once_and_then_found(encode, rows, speaking_lm):
    status, said, _ = encode("--json")
    found = json.loads(said)
    assert (status, found["rows"], found["encoded"]) == (0, 21, 3) and found["in_cache"]
    audio = EncodedAudio(speaking_lm.codec, rows.parent / "cache")
    for example in read_rows(rows):
        speaking_lm.encode_prompt(example, audio)
        if example.target_audio:
            speaking_lm.encode_target(example, audio)
        if example.rejected_audio:
            speaking_lm.encode_rejected(example, audio)
    assert audio.counts.encoded == 0 and audio.counts.hits > 0
    assert encode()[1].startswith("21 rows: 0 files encoded, ")


def test_what_cannot_be_encoded_is_said_with_its_row(encode, rows):
    for name in ("q", "b"):
        (rows.parent / f"{name}.wav").write_bytes(b"no sound")
    status, _, said = encode()
    lines = said.splitlines()
    assert status == 2 and [line.partition(":")[0] for line in lines if "wav" in line]
    assert any("rows.jsonl:1:" in line and "q.wav" in line for line in lines)
    assert any("rows.jsonl:21:" in line and "b.wav" in line for line in lines)


def test_a_dry_run_encodes_nothing(encode, rows):
    status, said, _ = encode("--dry-run")
    assert status == 0 and f"# checked: 21 prompts of {rows}" in said
    assert not (rows.parent / "cache").exists()
