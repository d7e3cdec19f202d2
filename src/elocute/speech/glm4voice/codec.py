"""The codec of GLM-4-Voice: its tokenizer in, its flow-matching decoder out.

    glm4voice_codec.json: {"format": "elocute-glm4voice-codec-1",
                           "tokenizer": "glm-4-voice-tokenizer", "decoder": "glm-4-voice-decoder", "steps": 10}

Paths are relative to the folder, or absolute: downloaded checkpoints may stay where they are. `save` copies them.
steps: of the flow; fewer are faster and rougher.
"""

import json
from pathlib import Path

import numpy as np

from elocute.data.files import read_json
from elocute.errors import InputError
from elocute.speech.glm4voice.decoder import STEPS, SpeechDecoder
from elocute.speech.glm4voice.tokenizer import SpeechTokenizer
from elocute.speech.units import as_units

SETTINGS = "glm4voice_codec.json"
_FORMAT = "elocute-glm4voice-codec-1"
_PATHS = ("tokenizer", "decoder")


class Glm4VoiceCodec:
    """Waveform ⇄ units, 12.5 a second. Load one with `Glm4VoiceCodec.load(folder)`.

    The digest is the tokenizer's: another decoder gives the same units another voice.
    """

    def __init__(self, tokenizer: SpeechTokenizer, decoder: SpeechDecoder, steps: int = STEPS):
        self.tokenizer, self.decoder, self.steps = tokenizer, decoder, steps
        self.n_units, self.sample_rate, self.digest = tokenizer.n_units, decoder.sample_rate, tokenizer.digest

    @classmethod
    def load(cls, folder: str | Path) -> "Glm4VoiceCodec":
        """Reads what `save` wrote, or a `glm4voice_codec.json` made by hand. InputError says what does not fit."""
        file = Path(folder) / SETTINGS
        said = _read_settings(file)
        tokenizer, decoder = (file.parent / said[key] for key in _PATHS)
        codec = cls(SpeechTokenizer.load(tokenizer), SpeechDecoder.load(decoder), said.get("steps", STEPS))
        if (known := codec.decoder.n_units) < codec.n_units:
            raise InputError(f"{file}: the decoder knows {known} units, the tokenizer's codebook has {codec.n_units}")
        return codec

    def save(self, folder: str | Path) -> None:
        """Writes a folder that holds everything; its digest is the same."""
        folder = Path(folder)
        self.tokenizer.save(folder / "tokenizer")
        self.decoder.save(folder / "decoder")
        said = {"format": _FORMAT, "tokenizer": "tokenizer", "decoder": "decoder", "steps": self.steps}
        (folder / SETTINGS).write_text(json.dumps(said, indent=2) + "\n")

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U]."""
        return self.tokenizer.encode(waveform, sample_rate)

    def decode(self, units) -> np.ndarray:
        """Units [U] → float32 [samples] in [−1, 1], as many as 256 · int(U / 12.5 · 22050 / 256).

        An id that is no unit: BrokenUnits.
        """
        units = as_units(units, self.n_units)
        if len(units) == 0:
            return np.zeros(0, dtype=np.float32)
        return self.decoder(units, self.steps)


def _read_settings(file: Path) -> dict:
    said = read_json(file, "the settings of a GLM-4-Voice codec")
    if said.get("format") != _FORMAT:
        raise InputError(f"{file}: format: expected {_FORMAT!r}")
    if unknown := set(said) - {"format", "steps", *_PATHS}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    for key in _PATHS:
        if not isinstance(said.get(key), str):
            raise InputError(f"{file}: {key}: expected a path, got {said.get(key)!r}")
    if type(said.get("steps", STEPS)) is not int or said.get("steps", STEPS) < 1:
        raise InputError(f"{file}: steps: expected a number, at least 1, got {said['steps']!r}")
    return said
