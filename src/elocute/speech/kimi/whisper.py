"""What Kimi-Audio hears beside codes: the encoder of Whisper large v3, four frames folded into one.

A recording at 16 kHz is cut into windows of 30 s, each padded with zeros to 480000 samples and encoded alone. A window
of L samples has n = (L − 1) // 1280 + 1 codes, and the first 4·n of its 1500 frames are kept; four frames in a row make
one feature, at 12.5 Hz as the codes are.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from elocute.data.audio import resample
from elocute.data.files import read_json
from elocute.data.shards import check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.units import as_mono

SAMPLE_RATE = 16000
WINDOW, HOP, FOLD = 30 * SAMPLE_RATE, 1280, 4
_PREFIXES = ("model.encoder.", "encoder.")
"""As transformers saves a Whisper, and as Kimi-Audio's fine-tuning exports the encoder alone."""
_SPARE = ("model.decoder.", "decoder.", "proj_out.")


class WhisperFeatures:
    """Waveform → features float32 [n, 4·d]. Frozen, on the first GPU if there is one, in `dtype`."""

    def __init__(self, encoder: WhisperEncoder, folder: Path):
        self.encoder = encoder.eval().requires_grad_(False)
        self.folder = folder
        self.width = FOLD * encoder.config.d_model
        self._mel = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> "WhisperFeatures":
        """A folder with config.json and model.safetensors of a Whisper, `whisper-large-v3` of the published model.

        The original computes in bfloat16. InputError for another model, or one whose encoder is not whole.
        """
        folder = Path(folder)
        check_whisper(folder)
        encoder = WhisperEncoder(_read_config(folder / "config.json"))
        encoder.load_state_dict(_read_encoder(folder / "model.safetensors", lambda file, name: file.get_tensor(name)))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(encoder.to(device=device, dtype=dtype), folder)

    def save(self, folder: str | Path) -> None:
        """Copy the files that it was loaded from: nothing in it is trained."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                shutil.copyfile(self.folder / name, Path(folder) / name)

    def encode(self, waveform: np.ndarray, sample_rate: int) -> torch.Tensor:
        """Float mono [samples] at any rate → float32 [n, 4·d] on the CPU, n = ⌈samples / 1280⌉ at 16 kHz."""
        waveform = as_mono(waveform)
        waveform = resample(waveform, sample_rate, SAMPLE_RATE)
        windows = [waveform[start : start + WINDOW] for start in range(0, len(waveform), WINDOW)]
        frames = [torch.zeros(0, self.encoder.config.d_model), *map(self._frames, windows)]
        return torch.cat(frames).reshape(-1, self.width)

    @torch.inference_mode()
    def _frames(self, window: np.ndarray) -> torch.Tensor:
        """One window, at most 30 s → float32 [4·n, d]."""
        mel = self._mel(window, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        weight = self.encoder.conv1.weight
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            states = self.encoder(mel.to(weight.device, weight.dtype)).last_hidden_state[0]
        return states[: FOLD * ((len(window) - 1) // HOP + 1)].float().cpu()


def check_whisper(folder: Path) -> int:
    """The width of a folder's features. InputError unless its encoder is whole; no weights are read."""
    config = _read_config(folder / "config.json")
    shapes = _read_encoder(folder / "model.safetensors", lambda file, name: file.get_slice(name).get_shape())
    encoder = without_weights(lambda: WhisperEncoder(config))
    check_fit(encoder, shapes, f"{folder}: the weights do not fit config.json")
    return FOLD * config.d_model


def _read_config(file: Path) -> WhisperConfig:
    said = read_json(file, "the config of a Whisper")
    try:
        if said.get("model_type") != "whisper":
            raise ValueError(f"model_type: expected whisper, got {said.get('model_type')!r}")
        config = WhisperConfig.from_dict(said)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not the config of a Whisper: {error}") from error
    if config.max_source_positions != WINDOW // 320:
        raise InputError(f"{file}: max_source_positions: expected 1500, got {config.max_source_positions}")
    return config


def _read_encoder(file: Path, take: Callable) -> dict[str, Any]:
    """What `take` takes, of the open file and a name, of each of the encoder's tensors, by the encoder's names."""
    state = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
                if prefix is not None:
                    state[name.removeprefix(prefix)] = take(opened, name)
                elif not name.startswith(_SPARE):
                    raise InputError(f"{file}: holds {name}, for which a Whisper has no place")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a Whisper's safetensors file: {error}") from error
    return state
