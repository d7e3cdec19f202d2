"""What TWIST and SlamKit hear and speak with, tiny and random, under the published names: `unit-codec`."""

import json
import re
from pathlib import Path

from elocute.speech.hubert import Reading
from tests.speech import unit_models

PAGE = Path("docs/twist.md")
UNITS = unit_models.UNITS


def build(folder: Path, pad_samples: int = 0) -> Path:
    """The folder, with the `unit_codec.json` that the page gives word for word; SlamKit's pads 40 samples."""
    folder.mkdir(parents=True)
    said = settings()
    unit_models.hubert(folder / "mhubert-base-25hz", layers=12)
    reading = Reading(said["layer"], pad_samples, said["chunk_seconds"])
    unit_models.centres(folder / "centres.safetensors", folder / "mhubert-base-25hz", reading)
    vocoder = "hifigan_lj_mhubert_base_25hz"
    unit_models.vocoder(folder / f"{vocoder}.pt", folder / f"{vocoder}_config.json")
    (folder / "unit_codec.json").write_text(json.dumps(said | {"pad_samples": pad_samples}))
    return folder


def settings() -> dict:
    """`unit_codec.json` as the page has it."""
    [block] = re.findall(r"cat > unit-codec/unit_codec.json <<'END'\n(.*?)\nEND\n", PAGE.read_text(), re.DOTALL)
    return json.loads(block)
