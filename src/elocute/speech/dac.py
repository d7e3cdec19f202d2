"""DAC, the Descript Audio Codec (Kumar et al. 2023): sound ⇄ frames of several codes, one of each codebook.

transformers' DacModel, from the folder in its layout (`descript/dac_16khz` and its like). A frame has a code of every
codebook, so it is for models that speak frames: a vocabulary with a token for each unit takes a codec of one codebook.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import DacModel

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.speech.published import EXTRACTOR, PublishedModel
from elocute.speech.units import as_mono, as_units

_ALGORITHM = "elocute-dac-codes-1"
"""Part of the digest: a change below that changes codes must change it."""


class Dac:
    """Waveform ⇄ codes [T, codebooks]. Load one with `Dac.load(folder)`."""

    def __init__(self, published: PublishedModel):
        self.published, self.model = published, published.model
        config = self.model.config
        self.sample_rate, self.hop = config.sampling_rate, config.hop_length
        self.n_units, self.codebooks = config.codebook_size, config.n_codebooks
        self.digest = published.digest(_ALGORITHM)

    @classmethod
    def load(cls, folder: str | Path) -> "Dac":
        """A folder in transformers' layout, or one that `save` wrote. InputError names what does not fit."""
        codec = cls(PublishedModel.load(DacModel, Path(folder)))
        said = codec.published.extractor()
        for key, value in {"sampling_rate": codec.sample_rate, "hop_length": codec.hop, "feature_size": 1}.items():
            if said.get(key, value) != value:
                raise InputError(f"{Path(folder) / EXTRACTOR}: {key}: expected {value}, got {said[key]!r}")
        return codec

    def save(self, folder: str | Path) -> None:
        """Write the same files."""
        self.published.save(folder)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [T, codebooks], T = ⌈samples / hop⌉ at the codec's rate."""
        waveform = as_mono(waveform)
        if not len(waveform):
            return np.zeros((0, self.codebooks), dtype=np.int64)
        sound = torch.from_numpy(resample(waveform, sample_rate, self.sample_rate))
        sound = torch.nn.functional.pad(sound, (0, -len(sound) % self.hop))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            found = self.model.encode(sound[None, None].to(self.model.device))
        return found.audio_codes[0].T.cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes) -> np.ndarray:
        """Codes [T, codebooks] → float32 in [−1, 1], hop samples a frame. BrokenUnits for what is no code."""
        codes = as_units(codes, self.n_units, self.codebooks)
        if len(codes) == 0:
            return np.zeros(0, dtype=np.float32)
        given = torch.from_numpy(codes.T.copy())[None].to(self.model.device)
        return self.model.decode(audio_codes=given).audio_values[0].clamp(-1, 1).cpu().numpy()
