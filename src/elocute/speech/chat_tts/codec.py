"""The codec of MiniCPM-o 2.6's speech: DVAE and Vocos, waveform at 24 kHz ⇄ four codes of 625 every 512 samples."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from elocute.data.audio import resample
from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.chat_tts.dvae import Dvae, DvaeShape
from elocute.speech.chat_tts.mel import SAMPLE_RATE, LogMel
from elocute.speech.chat_tts.vocos import Vocos
from elocute.speech.units import as_mono, as_units

PREFIX = "tts.dvae."
VOCOS = "assets/Vocos.pt"
_ALGORITHM = "elocute-chat-tts-codes-1"
"""Part of the digest: a change below that changes codes must change it."""


class ChatTTSCodec:
    """Waveform ⇄ codes [T, codebooks], in float32, on the first GPU if there is one.

    n_units: codes are 0 … n_units − 1; the decoder's end code is none of them. digest: of what codes depend on.
    """

    def __init__(self, dvae: Dvae, vocos: Vocos):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dvae, self.vocos = (part.eval().requires_grad_(False).to(self.device) for part in (dvae, vocos))
        self.mel = LogMel(dvae.shape.bins).to(self.device)
        self.sample_rate, self.n_units, self.codebooks = SAMPLE_RATE, dvae.n_codes, dvae.codebooks
        self.digest = _digest(dvae)

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTTSCodec":
        """From a MiniCPM-o 2.6 folder, of which only the DVAE and `assets/Vocos.pt` are read; or what `save` wrote.

        InputError for what is missing or does not fit.
        """
        folder = Path(folder)
        vocos = check_codec(folder)
        return cls(load_dvae(Shards.open(folder)), vocos)

    def save(self, folder: str | Path) -> None:
        """Write a folder of the codec alone, named as in the published one: model.safetensors and assets/Vocos.pt.

        InputError for a folder that holds a whole model, whose weights would be lost.
        """
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise InputError(f"{folder}: a model's folder; the codec needs one of its own")
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"{PREFIX}{name}": tensor.cpu() for name, tensor in self.dvae.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.vocos.save(folder / VOCOS)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [T, codebooks], T = (samples // 256 + 1) // 2 at 24 kHz.

        What is shorter than half a window, 513 samples, has none.
        """
        waveform = as_mono(waveform)
        sound = torch.from_numpy(resample(waveform, sample_rate, SAMPLE_RATE)).to(self.device)
        if len(sound) <= self.mel.n_fft // 2:
            return np.zeros((0, self.codebooks), dtype=np.int64)
        return self.dvae.encode(self.mel(sound)).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes) -> np.ndarray:
        """Codes [T, codebooks], without the end → float32 [512 · T] in [−1, 1]. BrokenUnits for what is no code."""
        codes = as_units(codes, self.n_units, self.codebooks)
        if len(codes) == 0:
            return np.zeros(0, dtype=np.float32)
        sound = self.vocos(self.dvae.decode(torch.from_numpy(codes).to(self.device)))
        return sound.clamp(-1, 1).cpu().numpy()


def check_codec(folder: Path) -> Vocos:
    """InputError unless the codec is there and its parts fit, before the DVAE is read; Vocos, which is small."""
    dvae, vocos = make_dvae(Shards.open(folder)), Vocos.load(folder / VOCOS)
    if (bins := vocos.backbone.embed.in_channels) != dvae.shape.bins:
        raise InputError(f"{folder / VOCOS}: expected {dvae.shape.bins} mel bins as the DVAE has, got {bins}")
    return vocos


def load_dvae(shards: Shards) -> Dvae:
    """The DVAE alone, in float32. InputError unless the folder's weights hold all of it."""
    dvae = make_dvae(shards)
    dvae.load_state_dict(shards.read(PREFIX, torch.float32), assign=True)
    return dvae


def make_dvae(shards: Shards) -> Dvae:
    """The same without its weights."""
    shapes = shards.shapes(PREFIX)
    try:
        shape = DvaeShape.of(shapes)
    except (KeyError, IndexError) as error:
        raise InputError(f"{shards.folder}: the weights lack {PREFIX}{error.args[0]}") from error
    dvae = without_weights(lambda: Dvae(shape))
    check_fit(dvae, shapes, f"{shards.folder}: {PREFIX[:-1]}")
    return dvae


def _digest(dvae: Dvae) -> str:
    """Of the weights that codes depend on."""
    digest = hashlib.sha256(_ALGORITHM.encode())
    for name, tensor in sorted(dvae.state_dict().items()):
        if not name.startswith(("decoder.", "out_conv.")) and "project_out" not in name:
            digest.update(f"{name} {[*tensor.shape]}\0".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
