"""How VITA-Audio Plus hears: waveform → SenseVoice's features → states, which the network projects (network.py).

One second is 17 features and 21 states, four being SenseVoice's queries. All of it is frozen. Everything but the
geometry is in the published folder: weights under `model.audio_model.`, the features' statistics in am.mvn. The
geometry is the weights' own but for what no weight shows, for which FunASR's config.yaml is asked if it is there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.models.vita.config import read_config
from elocute.models.vita.weights import ENCODER
from elocute.recipe.load import read_yaml
from elocute.speech.kaldi import WIDTH, FrontEnd, n_features
from elocute.speech.sensevoice import QUERIES, SenseVoice

_WEIGHTS, _SPARE = f"{ENCODER}model.", f"{ENCODER}model.ctc."
"""The recogniser's head, which the published folder holds as well, says nothing here."""
_FRONTEND = {
    "fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10, "lfr_m": 7, "lfr_n": 6
}  # fmt: skip
"""What of FunASR's frontend_conf is built here; a folder that asks for something else is refused."""


class UserAudio:
    """Front end and encoder, frozen, on the first GPU if there is one."""

    def __init__(self, front_end: FrontEnd, encoder: SenseVoice):
        self.front_end = front_end
        self.encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32, dither: float = 0.0) -> "UserAudio":
        """From a Plus folder, without its LLM. dtype "auto": the weights' own; dither: see `speech.kaldi.FrontEnd`.

        InputError for a folder of another kind, or where something lacks or does not fit.
        """
        return cls(*_opened(Path(folder), dither, lambda shards: shards.read(_WEIGHTS, dtype, skip=(_SPARE,))))

    def features(self, waveform: np.ndarray, sample_rate: int) -> Tensor:
        """Mono float [samples] at any rate → float32 [F, 560], on the CPU: what can be computed once and kept."""
        return self.front_end(waveform, sample_rate)

    @torch.no_grad()
    def states(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[F_i, 560] each → the encoder's states, [F_i + 4, size] each."""
        device = self.encoder.embed.weight.device
        counts = torch.tensor([len(each) for each in features], device=device)
        padded = nn.utils.rnn.pad_sequence([each.to(device) for each in features], batch_first=True)
        states = self.encoder(padded, counts)
        return [row[: count + len(QUERIES)] for row, count in zip(states, counts.tolist(), strict=True)]


def check_ears(folder: Path) -> None:
    """InputError unless a Plus folder has all that it hears with; of the weights names and shapes alone are read."""

    def without_numbers(shards: Shards) -> dict[str, Tensor]:
        shapes = shards.shapes(_WEIGHTS, skip=(_SPARE,))
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    _opened(folder, 0.0, without_numbers)


def _opened(folder: Path, dither: float, read: Callable[[Shards], dict[str, Tensor]]) -> tuple[FrontEnd, SenseVoice]:
    """Front end and encoder, of the weights that `read` takes."""
    config = read_config(folder)
    if not config.hears_features:
        raise InputError(f"{folder}: {config.model_type} hears units; only a Plus folder has an audio encoder")
    front_end = FrontEnd.load(folder / "am.mvn", dither)
    heads = _read_geometry(folder / "config.yaml")
    shards = Shards.open(folder)
    if strange := [name for name in shards.names(ENCODER) if not name.startswith(_WEIGHTS)]:
        raise InputError(f"{folder}: the weights hold {strange[0]}, for which the audio encoder has no place")
    try:
        encoder = SenseVoice.from_published(read(shards), heads)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    if encoder.width != WIDTH:
        raise InputError(f"{folder}: the audio encoder takes features of {encoder.width}, not of {WIDTH}")
    return front_end, encoder


def n_embeddings(samples: int) -> int:
    """The places that so many samples at 16 kHz take in a prompt, the two markers around them not counted."""
    return n_features(samples) + len(QUERIES)


def _read_geometry(file: Path) -> int:
    """The encoder's attention heads, of FunASR's config.yaml or as SenseVoiceSmall has them; checks the front end's."""
    said = read_yaml(file, "FunASR's config") if file.is_file() else {}
    encoder, front_end = said.get("encoder_conf") or {}, said.get("frontend_conf") or {}
    for name, value in _FRONTEND.items():
        if front_end.get(name, value) != value:
            raise InputError(f"{file}: frontend_conf: {name}: expected {value!r}, got {front_end[name]!r}")
    heads = encoder.get("attention_heads", 4)
    if not (type(heads) is int and heads > 0):
        raise InputError(f"{file}: encoder_conf: attention_heads: expected a positive number, got {heads!r}")
    return heads
