"""Units → 22.05 kHz: the decoder of GLM-4-Voice, as it is published: config.yaml, flow.pt, hift.pt."""

import json
from pathlib import Path

import numpy as np
import torch

from elocute.errors import InputError
from elocute.speech.glm4voice.files import check_state, copy_files, fill, read_tagged_yaml
from elocute.speech.glm4voice.flow import Flow
from elocute.speech.glm4voice.vocoder import Hift
from elocute.speech.torch_file import read_torch
from elocute.speech.unit_vocoder import folded

STEPS = 10
_FILES = ("config.yaml", "flow.pt", "hift.pt")
_SEED = 42
_WEIGHTS = "weights that torch can load"
_AS_PUBLISHED = {
    "flow.encoder": {
        "normalize_before": True,
        "input_layer": "linear",
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "block_rel_selfattn",
        "use_cnn_module": False,
        "macaron_style": False,
    },
    "flow.decoder.cfm_params.content": {"solver": "euler", "t_scheduler": "cosine"},
    "flow.decoder.estimator": {"act_fn": "gelu"},
}


class SpeechDecoder:
    """Units → sound of one voice. On the first GPU if there is one, in full float32.

    The noise is the same for every utterance, drawn on the CPU by a generator of its own: equal units sound equal, and
    nobody else's random numbers change. Load one with `SpeechDecoder.load(folder)`.
    """

    def __init__(self, flow: Flow, vocoder: Hift, files: tuple[Path, ...]):
        self.flow, self.vocoder = (part.eval().requires_grad_(False) for part in (flow, vocoder))
        self.files, self.n_units, self.sample_rate = files, flow.n_units, vocoder.sample_rate

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechDecoder":
        """The published folder: config.yaml, flow.pt, hift.pt. InputError for another one."""
        files, flow, vocoder = _opened(Path(folder))
        fill(flow, read_torch(files[1], _WEIGHTS), files[1])
        fill(vocoder, _folded(files[2]), files[2])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(flow.to(device), vocoder.to(device), files)

    def save(self, folder: str | Path) -> None:
        """Copy the files, byte for byte."""
        copy_files(self.files, Path(folder))

    @torch.inference_mode()
    def __call__(self, units: np.ndarray, steps: int = STEPS) -> np.ndarray:
        """int64 [N], at least one → float32 [hop · int(N / 12.5 · 22050 / 256)] in [−0.99, 0.99]."""
        generator = torch.Generator().manual_seed(_SEED)
        given = torch.from_numpy(np.ascontiguousarray(units)).to(self.flow.input_embedding.weight.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            mel = self.flow(given, generator, steps)
            return self.vocoder(mel[None], generator)[0].cpu().numpy()


def check_knows(folder: Path, n_units: int, model: Path) -> None:
    """InputError unless a folder's decoder is whole, and can say every unit of a model; its flow is not read."""
    files, flow, vocoder = _opened(Path(folder))
    if flow.n_units < n_units:
        raise InputError(f"{model}: {folder} knows {flow.n_units} units, the model's vocabulary has {n_units}")
    check_state(flow, read_torch(files[1], _WEIGHTS), files[1])
    check_state(vocoder, _folded(files[2]), files[2])


def _opened(folder: Path) -> tuple[tuple[Path, ...], Flow, Hift]:
    """Its files, and both networks, which have no weights yet."""
    files = tuple(folder / name for name in _FILES)
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder}: not a decoder of GLM-4-Voice: there is no {missing[0]}")
    said = read_tagged_yaml(files[0])
    _check(said, files[0])
    return files, _built(Flow, said, "flow", files[0]), _built(Hift, said, "hift", files[0])


def _check(said: dict, file: Path) -> None:
    for path, expected in _AS_PUBLISHED.items():
        part = said
        for key in path.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if not isinstance(part, dict):
            raise InputError(f"{file}: {path}: missing; expected the config of GLM-4-Voice's decoder")
        for key, value in expected.items():
            if part.get(key, value) != value:
                raise InputError(f"{file}: {path}.{key}: expected {json.dumps(value)}, got {part[key]!r}")


def _built(kind: type, said: dict, name: str, file: Path) -> torch.nn.Module:
    try:
        with torch.device("meta"):
            return kind(said[name])
    except KeyError as error:
        raise InputError(f"{file}: {name}: lacks {error.args[0]}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError, IndexError) as error:
        raise InputError(f"{file}: {name}: cannot be built: {' '.join(str(error).split())[:300]}") from error


def _folded(file: Path) -> dict[str, torch.Tensor]:
    try:
        return folded(read_torch(file, _WEIGHTS))
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"{file}: weight norm without its two parts: {' '.join(str(error).split())}") from error
