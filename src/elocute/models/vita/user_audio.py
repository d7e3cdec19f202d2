"""How VITA-Audio Plus hears: waveform → SenseVoice's features → states → as many embeddings of the LLM.

One second is 17 features and 21 embeddings, four being SenseVoice's queries. Everything but the geometry is in the
published folder: weights under `model.audio_model.` and `model.audio_projection.`, the features' statistics in am.mvn.
The geometry is the weights' own but for what no weight shows, for which FunASR's config.yaml is asked if it is there.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.models.vita.config import read_config
from elocute.models.vita.weights import AUDIO
from elocute.recipe.load import read_yaml
from elocute.speech.kaldi import WIDTH, FrontEnd, n_features
from elocute.speech.sensevoice import QUERIES, SenseVoice

_ENCODER, _PROJECTOR = f"{AUDIO[0]}model.", AUDIO[1]
_FRONTEND = {
    "fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10, "lfr_m": 7, "lfr_n": 6
}  # fmt: skip
"""What of FunASR's frontend_conf is built here; a folder that asks for something else is refused."""


class Projector(nn.Module):
    """Linear(GELU(Linear(LayerNorm(state)))): [.., size] → [.., hidden size of the LLM]."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(states))


class UserAudio(nn.Module):
    """Front end, frozen encoder and projector; the projector alone can be trained."""

    def __init__(self, front_end: FrontEnd, encoder: SenseVoice, projector: Projector):
        super().__init__()
        self.front_end, self.encoder, self.projector = front_end, encoder, projector

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32, dither: float = 0.0) -> "UserAudio":
        """From a Plus folder, without its LLM. dtype "auto": the weights' own; dither: see `speech.kaldi.FrontEnd`.

        InputError for a folder of another kind, or where something lacks or does not fit.
        """
        folder = Path(folder)
        config = read_config(folder)
        if not config.hears_features:
            raise InputError(f"{folder}: {config.model_type} hears units; only a Plus folder has an audio encoder")
        front_end = FrontEnd.load(folder / "am.mvn", dither)
        heads = _read_geometry(folder / "config.yaml")
        shards = Shards.open(folder)
        parts = {prefix: shards.read(prefix, dtype) for prefix in (_ENCODER, _PROJECTOR)}
        heard = [name for prefix in AUDIO for name in shards.names(prefix)]
        if strange := [name for name in heard if not name.startswith(tuple(parts))]:
            raise InputError(f"{folder}: the weights hold {strange[0]}, for which the audio encoder has no place")
        try:
            encoder = SenseVoice.from_published(parts[_ENCODER], heads)
            projector = _build_projector(parts[_PROJECTOR], encoder.size, config.hidden_size)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
        if encoder.width != WIDTH:
            raise InputError(f"{folder}: the audio encoder takes features of {encoder.width}, not of {WIDTH}")
        return cls(front_end, encoder, projector).eval()

    def published(self) -> dict[str, Tensor]:
        """All weights in their published names, to be saved with the LLM's."""
        state = {_ENCODER + name: tensor for name, tensor in self.encoder.published().items()}
        return state | {_PROJECTOR + name: tensor for name, tensor in self.projector.state_dict().items()}

    def features(self, waveform: np.ndarray, sample_rate: int) -> Tensor:
        """Mono float [samples] at any rate → float32 [F, 560], on the CPU: what can be computed once and kept."""
        return self.front_end(waveform, sample_rate)

    @torch.no_grad()
    def states(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[F_i, 560] each → the encoder's states, [F_i + 4, size] each; frozen, so they can be kept, too."""
        device = self.encoder.embed.weight.device
        counts = torch.tensor([len(each) for each in features], device=device)
        padded = nn.utils.rnn.pad_sequence([each.to(device) for each in features], batch_first=True)
        states = self.encoder(padded, counts)
        return [row[: count + len(QUERIES)] for row, count in zip(states, counts.tolist(), strict=True)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[F_i, 560] each → embeddings [F_i + 4, hidden size] each, for as many `<|context_of_audio|>`."""
        return [self.projector(states) for states in self.states(features)]


def n_embeddings(samples: int) -> int:
    """The places that so many samples at 16 kHz take in a prompt, the two markers around them not counted."""
    return n_features(samples) + len(QUERIES)


def _build_projector(state: dict[str, Tensor], size: int, hidden: int) -> Projector:
    with torch.device("meta"):
        projector = Projector(size, hidden)
    expected = {name: tensor.shape for name, tensor in projector.state_dict().items()}
    if wrong := sorted(set(expected) ^ set(state)):
        raise InputError(f"the projector's weights {'hold' if wrong[0] in state else 'lack'} {wrong[0]}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise InputError(f"the projector's {name}: expected shape {list(shape)}, got {list(state[name].shape)}")
    projector.load_state_dict(state, assign=True)
    return projector.requires_grad_(True)


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
