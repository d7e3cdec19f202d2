"""Folders by name, texts and recordings, below a folder of the test's own."""

import json
import sys

import numpy as np
import pytest
import soundfile

from elocute import cli


@pytest.fixture
def folders(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


@pytest.fixture
def type_command(tmp_path, monkeypatch, capsys):
    """Types `elocute …` in the test's folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["elocute", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def texts(tmp_path):
    """Writes rows: a text alone, or a whole row."""

    def write(*rows, name="given/texts.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": row} if isinstance(row, str) else row) + "\n" for row in rows))
        return path

    return write


def voice(pitch: float, seconds: float, gain: float = 0.3) -> np.ndarray:
    """A buzz with harmonics at `pitch` Hz, with a syllable's swell four times a second."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    buzz = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 12))
    return (gain * buzz / np.abs(buzz).max() * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


@pytest.fixture
def recorded(tmp_path, texts):
    """Six words, six syllables, in 0.8, 1.3 and 3 s (7.5, 4.6 and 2 syllables a second), ever higher and softer."""
    (tmp_path / "given").mkdir()
    rows = []
    for number, (seconds, pitch, gain) in enumerate([(0.8, 110, 0.5), (1.3, 160, 0.2), (3, 230, 0.05)]):
        soundfile.write(tmp_path / f"given/{number}.wav", voice(pitch, seconds, gain), 16_000)
        rows.append({"id": number, "text": "one two three four five six", "audio": f"{number}.wav"})
    return texts(*rows)
