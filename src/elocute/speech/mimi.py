"""Mimi, the codec of CSM and Moshi: waveform at 24 kHz ⇄ codes of several codebooks, 12.5 frames a second.

transformers' MimiModel, from a folder of its own (`kyutai/mimi`) or from within a model's: CSM keeps it under
`codec_model.`, Moshi under `audio_encoder.`. The first codebook is semantic, the others acoustic; a model that speaks
fewer than the codec has uses the first of them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.utils.rnn import pad_sequence
from transformers import EncodecFeatureExtractor, MimiConfig, MimiModel

from elocute.data.audio import resample
from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.speech.units import BrokenUnits, as_mono, as_units

_PLACES = {
    "mimi": (None, ""),
    "csm": ("codec_config", "codec_model."),
    "moshi": ("audio_encoder_config", "audio_encoder."),
}
"""By a folder's model_type: where in config.json the codec's own config is, and what its weights' names begin with."""
_ALGORITHM = "elocute-mimi-codes-1"
"""Part of the digest: a change below that changes codes must change it."""
_AT_A_TIME = {"cpu": 1, "cuda": 16}
"""Answers decoded together; on a CPU several take twice the time that they take one by one."""


class MimiCodec:
    """Waveform ⇄ codes [T, codebooks], in float32, on the first GPU if there is one.

    n_units: codes are 0 … n_units − 1, in every codebook. digest: of what codes depend on.
    """

    def __init__(self, model: MimiModel, codebooks: int):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.sample_rate, self.n_units = model.config.sampling_rate, model.config.codebook_size
        self.codebooks, self.digest = codebooks, _digest(model, codebooks)

    @classmethod
    def load(cls, folder: str | Path, codebooks: int | None = None) -> "MimiCodec":
        """From a folder of Mimi, CSM or Moshi, of which nothing else is read; or what `save` wrote.

        codebooks: how many of them are spoken; None: all. InputError for what is missing or does not fit.
        """
        folder = Path(folder)
        config, prefix = _open(folder)
        if codebooks is not None and codebooks > config.num_quantizers:
            raise InputError(f"{folder}: the codec has {config.num_quantizers} codebooks, the model speaks {codebooks}")
        state = Shards.open(folder).read(prefix, torch.float32)
        try:
            model, found = MimiModel.from_pretrained(
                None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
            )
        except RuntimeError as error:
            raise InputError(f"{folder}: the codec's weights do not fit its config: {_line(error)}") from error
        if found["missing_keys"]:
            raise InputError(f"{folder}: the weights lack {prefix}{sorted(found['missing_keys'])[0]}")
        return cls(model, codebooks or config.num_quantizers)

    def save(self, folder: str | Path) -> None:
        """Write a folder of the codec alone, as `kyutai/mimi` is."""
        self.model.save_pretrained(folder)
        EncodecFeatureExtractor(feature_size=1, sampling_rate=self.sample_rate).save_pretrained(folder)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [T, codebooks]; the last frame is filled up with silence."""
        waveform = as_mono(waveform)
        sound = torch.from_numpy(resample(waveform, sample_rate, self.sample_rate)).to(self.device)
        if len(sound) == 0:
            return np.zeros((0, self.codebooks), dtype=np.int64)
        return self.model.encode(sound[None, None], num_quantizers=self.codebooks).audio_codes[0].T.cpu().numpy()

    def decode(self, codes) -> np.ndarray:
        """Codes [T, codebooks] → float32 [samples] in [−1, 1], 1920 a frame. BrokenUnits for what is no code."""
        [sound] = self.decode_batch([codes])
        if isinstance(sound, BrokenUnits):
            raise sound
        return sound

    def decode_batch(self, answers: Sequence) -> list[np.ndarray | BrokenUnits]:
        """The same for many, on a GPU at a time. The decoder is causal: what is behind an end is not heard."""
        found: list[np.ndarray | BrokenUnits] = [np.zeros(0, dtype=np.float32)] * len(answers)
        frames: dict[int, torch.Tensor] = {}
        for place, codes in enumerate(answers):
            try:
                codes = as_units(codes, self.n_units, self.codebooks)
            except BrokenUnits as error:
                found[place] = error
            else:
                if len(codes):
                    frames[place] = torch.from_numpy(codes)
        places = sorted(frames, key=lambda place: len(frames[place]))  # of like length, so that there is little padding
        size = _AT_A_TIME[self.device]
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            sounds = self._sounds(pad_sequence([frames[place] for place in batch], batch_first=True))
            hop = sounds.shape[1] // len(frames[batch[-1]])
            for place, sound in zip(batch, sounds, strict=True):
                found[place] = sound[: hop * len(frames[place])].copy()
        return found

    @torch.inference_mode()
    def _sounds(self, codes: torch.Tensor) -> np.ndarray:
        """Codes [B, T, codebooks] → [B, samples]."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            sounds = self.model.decode(codes.transpose(1, 2).to(self.device)).audio_values
        return sounds[:, 0].clamp(-1, 1).cpu().numpy()

    def silence(self) -> np.ndarray:
        """The codes of one frame of silence, int64 [codebooks]: what transformers has Moshi hear while nobody talks."""
        frame = int(self.sample_rate / self.model.config.frame_rate)
        return self.encode(np.zeros(frame, dtype=np.float32), self.sample_rate)[0]


def _open(folder: Path) -> tuple[MimiConfig, str]:
    """The codec's config, and the prefix of its weights."""
    file = folder / "config.json"
    try:
        said = json.loads(file.read_text())
        key, prefix = _PLACES[said["model_type"]]
        said = said if key is None else said[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected the config of Mimi, or of CSM or Moshi with Mimi in it") from error
    try:
        config = MimiConfig.from_dict(said)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{file}: not a config of Mimi: {' '.join(str(error).split())}") from error
    if config.audio_channels != 1:
        raise InputError(f"{file}: audio_channels: expected 1, got {config.audio_channels}")
    return config, prefix


def _digest(model: MimiModel, codebooks: int) -> str:
    """Of the weights that codes depend on."""
    digest = hashlib.sha256(f"{_ALGORITHM} {codebooks}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update(f"{name} {[*tensor.shape]}\0".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
