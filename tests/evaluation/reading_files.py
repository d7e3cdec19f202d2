"""What a tiny TTS model is evaluated with: its folder, rows to read, and who hears the labels."""

import json
from pathlib import Path

from tests.models.tts_folders import SCHEMA, tts_lm
from tests.rewards import tiny_models

ROWS = [
    ("the train leaves at nine", {"emotion": "Happy", "speed": "Slow"}),
    ("one two three", {"emotion": "Very Sad", "speed": "Fast"}),
    ("four five six", {"emotion": "Neutral"}),
    ("one two three", {"emotion": "Very Sad", "speed": "Fast"}),
    ("at nine", {}),
]
MEASURED = SCHEMA + "    measure: syllables_per_second\n    bounds: [4, 12]\n"


def write_files(folder: Path) -> Path:
    """model/, rows.jsonl, schema.yaml (with a measured speed), classifier/ and listeners.yaml; returns `folder`."""
    tts_lm(folder).save(folder / "model")
    rows = [{"messages": [{"role": "user", "content": text}], "labels": labels} for text, labels in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "schema.yaml").write_text(MEASURED)
    tiny_models.audio_classifier(folder / "classifier", ("neutral", "happy", "tears"))
    (folder / "listeners.yaml").write_text(json.dumps({"rewards": listeners(folder)}))
    return folder


def listeners(folder: Path) -> list[dict]:
    """Emotion by a classifier, speed by measuring."""
    emotion = {"kind": "emotion", "path": str(folder / "classifier"), "label_map": {"Very Sad": ["tears"]}}
    return [emotion, {"kind": "prosody", "labels": str(folder / "schema.yaml")}]
