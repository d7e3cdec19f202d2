"""Waveform ⇄ units. A new codec is a file here, and one line where `load_codec` chooses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from elocute.data.files import model_type
from elocute.errors import InputError
from elocute.speech.codec import StarterCodec
from elocute.speech.units import BrokenUnits


class Codec(Protocol):
    """What a speech LM needs of its codec.

    sample_rate: Hz of what `decode` gives; n_units: units are 0 … n_units − 1. digest changes whenever the same audio
    would give other units: cached audio is tied to it. encode: float [samples] at any rate → int64 [units]. decode:
    units, possibly none → float32 [samples] in [−1, 1]; BrokenUnits where they are no speech. decode_batch, which only
    some codecs have: many answers' units → each one's sound, or its BrokenUnits.
    """

    digest: str
    sample_rate: int
    n_units: int

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray: ...

    def decode(self, units) -> np.ndarray: ...

    def save(self, folder: str | Path) -> None: ...


def decode_all(codec: Codec, answers: Sequence) -> list[np.ndarray | BrokenUnits]:
    """Each answer's units → its sound, or why it has none: all at once where the codec can."""
    if hasattr(codec, "decode_batch"):
        return codec.decode_batch(answers)
    found: list[np.ndarray | BrokenUnits] = []
    for units in answers:
        try:
            found.append(codec.decode(units))
        except BrokenUnits as error:
            found.append(error)
    return found


def load_codec(folder: str | Path) -> Codec:
    """Load the codec in a folder, chosen by the settings that lie there. InputError when it is none."""
    folder = Path(folder)
    if (folder / "unit_codec.json").is_file():
        from elocute.speech.unit_codec import UnitCodec  # brings HuBERT: a second that other models need not wait

        return UnitCodec.load(folder)
    if (folder / "glm4voice_codec.json").is_file():
        from elocute.speech.glm4voice.codec import Glm4VoiceCodec  # brings Whisper

        return Glm4VoiceCodec.load(folder)
    if (folder / "units.json").is_file():
        from elocute.speech.starter_units import StarterUnits

        return StarterUnits.load(folder)
    if (folder / "config.json").is_file():  # transformers' own, which bring transformers
        return _published(folder)
    return StarterCodec.load(folder)


def _published(folder: Path) -> Codec:
    kind = model_type(folder)
    if kind == "mimi":
        from elocute.speech.mimi import MimiCodec

        return MimiCodec.load(folder)
    if kind == "xcodec2":
        from elocute.speech.xcodec2 import XCodec2

        return XCodec2.load(folder)
    if kind == "dac":
        from elocute.speech.dac import Dac

        return Dac.load(folder)
    raise InputError(f"{folder}/config.json: model_type: expected a codec's, mimi, xcodec2 or dac, got {kind!r}")
