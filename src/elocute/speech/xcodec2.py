"""X-Codec 2 (Ye et al. 2025, the codec of Llasa): 16 kHz speech ⇄ units, 50 a second, of one codebook of 65,536.

transformers' Xcodec2Model, from the folder in its layout. The features that its semantic encoder reads are made here:
transformers' extractor needs torchaudio, for Kaldi's log-mel frames alone.

A recording is encoded alone: its features are normalised over its own length, and nothing of a batch reaches it.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import Xcodec2Model

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.speech.kaldi import N_MELS, SAMPLE_RATE, fbank, povey_window
from elocute.speech.published import EXTRACTOR, PublishedModel
from elocute.speech.units import as_mono, as_units

_STACK = 2  # 10 ms frames side by side
_ALGORITHM = "elocute-xcodec2-units-1"
"""Part of the digest: a change below that changes units must change it."""
_SPARE = frozenset({"semantic_encoder.masked_spec_embed"})
"""What masks in training: no unit depends on it."""


class XCodec2:
    """Waveform ⇄ units. Load one with `XCodec2.load(folder)`."""

    sample_rate = SAMPLE_RATE

    def __init__(self, published: PublishedModel):
        self.published, self.model = published, published.model
        self.hop, self.n_units = self.model.hop_length, len(self.model.quantizer.quantizer.codebook)
        self.units_per_second = SAMPLE_RATE / self.hop
        self.digest = published.digest(_ALGORITHM)

    @classmethod
    def load(cls, folder: str | Path) -> "XCodec2":
        """A folder in transformers' layout, or one that `save` wrote. InputError names what does not fit."""
        folder = Path(folder)
        codec = cls(PublishedModel.load(Xcodec2Model, folder, _SPARE))
        config, said = codec.model.config, codec.published.extractor()
        expected = {"sampling_rate": SAMPLE_RATE, "hop_length": codec.hop}
        for key, value in expected.items():
            if said.get(key, value) != value:
                raise InputError(f"{folder / EXTRACTOR}: {key}: expected {value}, got {said[key]!r}")
        if config.sampling_rate != SAMPLE_RATE or codec.hop != _STACK * 160:
            raise InputError(
                f"{folder}/config.json: expected a codec of {SAMPLE_RATE} Hz with a unit for {_STACK * 160} samples, "
                f"got {config.sampling_rate} Hz and {codec.hop}"
            )
        if (width := config.semantic_model_config.feature_projection_input_dim) != _STACK * N_MELS:
            raise InputError(
                f"{folder}/config.json: feature_projection_input_dim: expected {_STACK * N_MELS}, got {width}"
            )
        return codec

    def save(self, folder: str | Path) -> None:
        """Write the same files."""
        self.published.save(folder)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U], U = ⌈(samples + 1) / 320⌉ at 16 kHz; none for no samples."""
        waveform = as_mono(waveform)
        if not len(waveform):
            return np.zeros(0, dtype=np.int64)
        sound = self.padded(resample(waveform, sample_rate, SAMPLE_RATE))
        given = self.features(sound)[None].to(self.model.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            found = self.model.encode(
                sound[None, None].to(self.model.device),
                given,
                input_features_mask=torch.ones_like(given[..., 0]).long(),
            )
        return found.audio_codes[0, 0].long().cpu().numpy()

    def padded(self, waveform: np.ndarray) -> torch.Tensor:
        """float32 [samples] with a zero behind it, and more up to a whole number of units."""
        sound = torch.from_numpy(waveform)
        return torch.nn.functional.pad(sound, (0, 1 + -(len(sound) + 1) % self.hop))

    def features(self, sound: torch.Tensor) -> torch.Tensor:
        """float32 [U · 320] → [U, 160]: log-mel frames, each band of mean 0 and variance 1, two side by side."""
        half = self.hop // 2
        frames = fbank(torch.nn.functional.pad(sound, (half, half)), window=povey_window())
        normal = (frames - frames.mean(0)) / (frames.var(0) + 1e-7).sqrt()
        return normal.reshape(-1, _STACK * N_MELS)

    @torch.inference_mode()
    def decode(self, units) -> np.ndarray:
        """Units [U] → float32 [320 · U] in [−1, 1]. BrokenUnits for what is no unit."""
        units = as_units(units, self.n_units)
        if len(units) == 0:
            return np.zeros(0, dtype=np.float32)
        codes = torch.from_numpy(units)[None, None].to(self.model.device)
        return self.model.decode(codes).audio_values[0, 0].clamp(-1, 1).cpu().numpy()
