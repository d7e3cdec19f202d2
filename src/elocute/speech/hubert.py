"""Speech units of a HuBERT: the hidden states of one layer, each replaced by its nearest k-means centre.

Hsu et al. 2021; mHuBERT at 25 Hz, layer 11 and 500 centres are the units of TWIST (Hassid et al. 2023) and SlamKit.

A recording is encoded alone. HuBERT's group norm runs over the whole waveform and these models take no attention mask:
next to a longer recording in one padded batch, the same recording would give other units.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import HubertModel

from elocute.data.audio import resample
from elocute.data.digest import digest_file
from elocute.data.files import read_json
from elocute.errors import InputError
from elocute.speech.codec import nearest
from elocute.speech.repeats import merge_repeats
from elocute.speech.units import as_mono

SAMPLE_RATE = 16000
_ALGORITHM = "elocute-hubert-units-1"
"""Part of the digest: a change below that changes units must change it."""
_SPARE = {"masked_spec_embed", "lm_head.weight", "lm_head.bias"}
"""Weights that no hidden state depends on: what masks in training, the head of a recogniser."""


@dataclass(frozen=True)
class Reading:
    """How a HuBERT is read.

    layer: which hidden states; 0 are those before the first layer. pad_samples: zeros put before and behind the
    recording (SlamKit: 40, textlesslib: 0). chunk_seconds: longer recordings are cut into pieces of this length, each
    encoded alone (textlesslib: 100).
    """

    layer: int = 11
    pad_samples: int = 0
    chunk_seconds: float = 100.0


class HubertUnits:
    """Waveform → units without repeats. On the first GPU if there is one, in full float32.

    centres float32 [K, D]; files: config, weights and centres that it was loaded from. digest: of those files and the
    reading; a GPU may round a state between two centres to the other one, which the digest does not see.
    """

    def __init__(self, model: HubertModel, centres: np.ndarray, reading: Reading, files: tuple[Path, Path, Path]):
        self.model = model.eval().requires_grad_(False)
        self.centres, self.reading, self.files = centres, reading, files
        self.n_units = len(centres)
        self.digest = _digest(files, reading)

    @classmethod
    def load(cls, folder: Path, centres: Path, reading: Reading = Reading()) -> "HubertUnits":
        """A folder that HubertModel reads, and a safetensors file with the one tensor [K, D] of k-means centres."""
        config, weights = folder / "config.json", folder / "model.safetensors"
        if not weights.is_file():
            weights = folder / "pytorch_model.bin"
        if not (config.is_file() and weights.is_file()):
            raise InputError(f"{folder}: not a HuBERT folder: expected config.json and model.safetensors")
        _check_type(config)
        try:
            model, found = HubertModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{folder}: not a HuBERT that transformers can load: {reason}") from error
        if lacking := sorted(found["missing_keys"] - _SPARE):
            raise InputError(f"{folder}: the weights lack {lacking[0]}")
        if strange := sorted(found["unexpected_keys"] - _SPARE):
            raise InputError(f"{folder}: the weights hold {strange[0]}, for which config.json has no place")
        if not 0 <= reading.layer <= model.config.num_hidden_layers:
            raise InputError(f"{folder}: layer: expected 0 … {model.config.num_hidden_layers}, got {reading.layer}")
        table = _read_centres(centres, model.config.hidden_size)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), table, reading, (config, weights, centres))

    def save(self, folder: Path) -> None:
        """Copy the files, byte for byte, for the digest is theirs: `hubert/` and `centres.safetensors`."""
        (folder / "hubert").mkdir(parents=True, exist_ok=True)
        config, weights, centres = self.files
        copies = (folder / "hubert/config.json", folder / "hubert" / weights.name, folder / "centres.safetensors")
        for source, target in zip((config, weights, centres), copies, strict=True):
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U], no unit twice in a row; none if it is too short."""
        waveform = as_mono(waveform)
        return merge_repeats(nearest(self.features(resample(waveform, sample_rate, SAMPLE_RATE)), self.centres))

    @torch.inference_mode()
    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Hidden states of the layer, float32 [T, D], of float32 [samples] at 16 kHz, as it is: not normalised."""
        waveform = np.pad(waveform, self.reading.pad_samples)
        size = round(self.reading.chunk_seconds * SAMPLE_RATE)
        pieces = [waveform[start : start + size] for start in range(0, len(waveform), size)]
        states = [self._states(piece) for piece in pieces if self._frames(len(piece)) > 0]
        return np.concatenate([np.zeros((0, self.model.config.hidden_size), dtype=np.float32), *states])

    def _states(self, piece: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(piece)[None].to(self.model.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return self.model(given, output_hidden_states=True).hidden_states[self.reading.layer][0].cpu().numpy()

    def _frames(self, samples: int) -> int:
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


def _digest(files: tuple[Path, ...], reading: Reading) -> str:
    said = [_ALGORITHM, json.dumps(asdict(reading), sort_keys=True), *(digest_file(file) for file in files)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _check_type(config: Path) -> None:
    """transformers would read any folder as a HuBERT and fill what is missing with noise."""
    if (kind := read_json(config, "the config of a model").get("model_type")) != "hubert":
        raise InputError(f"{config}: model_type: expected hubert, got {kind!r}")


def _read_centres(file: Path, width: int) -> np.ndarray:
    try:
        [table] = load_file(file).values()
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{file}: not a safetensors file with one tensor, the k-means centres: {error}") from error
    if table.ndim != 2 or table.shape[1] != width or not np.isfinite(table).all():
        raise InputError(f"{file}: expected finite centres [K, {width}], got {list(table.shape)}")
    return table.astype(np.float32)
