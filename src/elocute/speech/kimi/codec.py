"""Kimi-Audio's codec: the tokenizer of GLM-4-Voice in, the model's own flow and BigVGAN out."""

from pathlib import Path

import numpy as np

from elocute.speech.glm4voice.tokenizer import SpeechTokenizer
from elocute.speech.kimi.detokenizer import Detokenizer


class KimiCodec:
    """Waveform ⇄ codes, 12.5 a second; 24 kHz out. The digest is the tokenizer's: the voice does not change codes."""

    units_per_second = 12.5

    def __init__(self, tokenizer: SpeechTokenizer, detokenizer: Detokenizer):
        self.tokenizer, self.detokenizer = tokenizer, detokenizer
        self.n_units, self.sample_rate, self.digest = tokenizer.n_units, detokenizer.sample_rate, tokenizer.digest

    @classmethod
    def load(cls, folder: str | Path, tokenizer: str | Path) -> "KimiCodec":
        """folder: a published Kimi-Audio, of which the voice is read; tokenizer: GLM-4-Voice's. InputError names what
        is not whole; whether they have the same codes is the model's to check."""
        return cls(SpeechTokenizer.load(tokenizer), Detokenizer.load(folder))

    def save(self, folder: str | Path) -> None:
        """Write both, the tokenizer into a folder of its own."""
        self.detokenizer.save(folder)
        self.tokenizer.save(Path(folder) / "glm-4-voice-tokenizer")

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U]."""
        return self.tokenizer.encode(waveform, sample_rate)

    def decode(self, units) -> np.ndarray:
        """Codes [U] → float32 [1920 · U] in [−1, 1]. BrokenUnits for what is no code."""
        return self.detokenizer.decode(units)
