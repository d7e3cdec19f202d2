"""Kimi-Audio's voice: codes → mel spectrogram (flow) → waveform (BigVGAN), 12.5 codes a second, 24 kHz.

The original vocodes chunk by chunk as they come, half a chunk overlapping, and fades one into the next; here the whole
mel is vocoded at once. The two differ where the original's pieces meet, in what one of them could not see.
"""

from pathlib import Path

import numpy as np
import torch

from elocute.errors import InputError
from elocute.speech.kimi.bigvgan import BigVGAN
from elocute.speech.kimi.flow import FRAMES, Flow
from elocute.speech.units import as_units

FLOW, VOCODER = "audio_detokenizer", "vocoder"
_NOISE_SEED = 0


class Detokenizer:
    """Codes → sound. Deterministic: the flow starts from the same noise each time. On the first GPU if there is one."""

    def __init__(self, flow: Flow, vocoder: BigVGAN):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.flow, self.vocoder = flow.to(device), vocoder.to(device)
        self.n_codes, self.sample_rate = flow.n_codes, vocoder.sample_rate
        self.samples_per_code = FRAMES * vocoder.hop

    @classmethod
    def load(cls, folder: str | Path) -> "Detokenizer":
        """A published folder, of which `audio_detokenizer` and `vocoder` are read. InputError for anything else."""
        check_voice(Path(folder))
        return cls(Flow.load(Path(folder) / FLOW), BigVGAN.load(Path(folder) / VOCODER))

    def save(self, folder: str | Path) -> None:
        """Write both parts again, under the same names."""
        self.flow.save(Path(folder) / FLOW)
        self.vocoder.save(Path(folder) / VOCODER)

    @torch.inference_mode()
    def decode(self, codes) -> np.ndarray:
        """int [U] → float32 [1920 · U] in [−1, 1]. BrokenUnits for what is no code."""
        codes = torch.from_numpy(as_units(codes, self.n_codes))
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        mel = self.flow.mel(codes, torch.Generator().manual_seed(_NOISE_SEED))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return self.vocoder(mel.T[None])[0].cpu().numpy()


def check_voice(folder: Path) -> int:
    """How many codes a published folder's voice knows. InputError unless it is whole; no weights are read."""
    (flow, _), (vocoder, _) = Flow.opened(folder / FLOW), BigVGAN.opened(folder / VOCODER)
    if flow.n_mels != vocoder.n_mels:
        raise InputError(f"{folder}: the flow gives {flow.n_mels} mel bands, the vocoder expects {vocoder.n_mels}")
    return flow.n_codes
