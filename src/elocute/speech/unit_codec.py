"""The codec of textless models: HuBERT units without repeats in, a unit HiFi-GAN out.

    unit_codec.json: {"format": "elocute-unit-codec-1",
                      "hubert": "hubert", "centres": "centres.safetensors",
                      "layer": 11, "pad_samples": 0, "chunk_seconds": 100,
                      "vocoder": "hifigan.pt", "vocoder_config": "hifigan_config.json"}

Paths are relative to the folder, or absolute: downloaded checkpoints may stay where they are. `save` copies them.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from elocute.data.files import read_json
from elocute.errors import InputError
from elocute.speech.hubert import HubertUnits, Reading
from elocute.speech.repeats import merge_repeats
from elocute.speech.unit_vocoder import UnitVocoder
from elocute.speech.units import as_units

_SETTINGS = "unit_codec.json"
_FORMAT = "elocute-unit-codec-1"
_PATHS = ("hubert", "centres", "vocoder", "vocoder_config")
_DEFAULT = asdict(Reading())


class UnitCodec:
    """Waveform ⇄ units without repeats; the vocoder gives each its duration. Load one with `UnitCodec.load(folder)`.

    The digest is the tokenizer's: another vocoder gives the same units another voice.
    """

    def __init__(self, tokenizer: HubertUnits, vocoder: UnitVocoder):
        self.tokenizer, self.vocoder = tokenizer, vocoder
        self.n_units, self.sample_rate, self.digest = tokenizer.n_units, vocoder.sample_rate, tokenizer.digest

    @classmethod
    def load(cls, folder: str | Path) -> "UnitCodec":
        """Reads what `save` wrote, or a `unit_codec.json` made by hand. InputError says what does not fit."""
        file = Path(folder) / _SETTINGS
        said = _read_settings(file)
        hubert, centres, vocoder, config = (file.parent / said[key] for key in _PATHS)
        reading = Reading(**{key: type(_DEFAULT[key])(said[key]) for key in _DEFAULT if key in said})
        codec = cls(HubertUnits.load(hubert, centres, reading), UnitVocoder.load(vocoder, config))
        if (known := codec.vocoder.n_units) < codec.n_units:
            raise InputError(f"{file}: the vocoder knows {known} units, there are {codec.n_units} centres")
        return codec

    def save(self, folder: str | Path) -> None:
        """Writes a folder that holds everything; its digest is the same."""
        folder = Path(folder)
        self.tokenizer.save(folder)
        self.vocoder.save(folder)
        parts = ("hubert", "centres.safetensors", "vocoder.safetensors", "vocoder.json")
        said = {"format": _FORMAT} | dict(zip(_PATHS, parts, strict=True)) | asdict(self.tokenizer.reading)
        (folder / _SETTINGS).write_text(json.dumps(said, indent=2) + "\n")

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U], no unit twice in a row."""
        return self.tokenizer.encode(waveform, sample_rate)

    def decode(self, units) -> np.ndarray:
        """Units [U] (repeats are merged) → float32 [samples] in [−1, 1]. An id that is no unit: BrokenUnits."""
        units = as_units(units, self.n_units)
        if len(units) == 0:
            return np.zeros(0, dtype=np.float32)
        return self.vocoder(merge_repeats(units))


def _read_settings(file: Path) -> dict:
    said = read_json(file, "the JSON of a unit codec")
    if said.get("format") != _FORMAT:
        raise InputError(f"{file}: format: expected {_FORMAT!r}")
    if unknown := set(said) - {"format", *_PATHS, *_DEFAULT}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    for key in _PATHS:
        if not isinstance(said.get(key), str):
            raise InputError(f"{file}: {key}: expected a path, got {said.get(key)!r}")
    for key, default in _DEFAULT.items():
        least = 1 if key == "chunk_seconds" else 0
        if type(said.get(key, default)) not in (int, type(default)) or said.get(key, default) < least:
            raise InputError(f"{file}: {key}: expected a number, at least {least}, got {said[key]!r}")
    return said
