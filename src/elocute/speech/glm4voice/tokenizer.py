"""The speech tokenizer of GLM-4-Voice: the lower half of a Whisper encoder, then a codebook (Zeng et al. 2024).

    x = gelu(conv2(gelu(conv1(mel)))) + positions       both convolutions causal: two zeros on the left, none right
    x = Whisper layers of x                             frame i hears frame j if j is no padding, and j ≤ i or both lie
                                                        in one block of 4 s
    h = means of 4 frames;  unit = argmin_k ‖h − codebook_k‖²

Layers are transformers' own, features those of its WhisperFeatureExtractor. No layer norm follows the layers; what the
checkpoint holds above the codebook is not needed for units.

A recording is cut into pieces of 30 s, encoded each from position 0. The pieces of one recording are padded to the
longest of them before the log-mel features are taken, as the original does; another recording never changes its units.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from elocute.data.audio import resample
from elocute.data.digest import digest_file
from elocute.data.files import read_json
from elocute.errors import InputError
from elocute.speech.glm4voice.files import check_state, copy_files, fill, read_header, read_safetensors
from elocute.speech.units import as_mono

_ALGORITHM = "elocute-glm4voice-units-1"
"""Part of the digest: a change below that changes units must change it."""
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_SIZES = (
    "d_model", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "max_source_positions",
    "quantize_vocab_size", "quantize_position", "pooling_position", "pooling_kernel_size",
    "quantize_causal_block_size",
)  # fmt: skip
_AS_PUBLISHED = {
    "pooling_type": "avg",
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "quantize_causal_encoder": False,
    "scale_embedding": False,
}
_WHOLE_MODEL = "model.encoder."
_SPARE = re.compile(r"embed_positions2\.weight|ema_count|ema_weight|layer_norm\.(weight|bias)|layers\.(\d+)\..*")
_CONV_STRIDE = 2


class WhisperVQ(nn.Module):
    """Log-mel features → states → units. The names are those of the published weights."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        width = config.d_model
        self.pool, self.block = config.pooling_kernel_size, config.quantize_causal_block_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=_CONV_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-mel [B, mel, F] and which frames are sound, bool [B, F] → units int64 [B, ⌈F / 8⌉].

        Units of which the first of their eight frames is padding mean nothing.
        """
        states = self.pooled(features, mask)
        table = self.codebook.weight
        return ((table**2).sum(-1) - 2 * states @ table.T).argmin(-1)

    def pooled(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What is compared to the codebook: [B, ⌈F / 8⌉, D]; arguments as for `forward`."""
        x = F.gelu(self.conv1(F.pad(features, (2, 0))))
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        heard = self._heard(mask[:, ::_CONV_STRIDE]).to(x.dtype)
        penalty = (1 - heard) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, penalty[:, None])
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % self.pool))
        return F.avg_pool1d(x, self.pool).transpose(1, 2)

    def _heard(self, valid: torch.Tensor) -> torch.Tensor:
        """bool [B, T] → bool [B, T, T]: may frame i hear frame j?"""
        place = torch.arange(valid.shape[1], device=valid.device)
        before, same = place[None] <= place[:, None], place[None] // self.block == place[:, None] // self.block
        return (before | same) & valid[:, None]


class SpeechTokenizer:
    """Waveform → units, 12.5 a second. On the first GPU if there is one, in full float32.

    Load one with `SpeechTokenizer.load(folder)`. n_units: units are 0 … n_units − 1. unit_samples: samples a unit, at
    `sample_rate` Hz. digest: of the folder's three files; a GPU may round a state between two codes to the other one,
    which the digest does not see.
    """

    def __init__(self, model: WhisperVQ, extractor: WhisperFeatureExtractor, files: tuple[Path, ...]):
        self.model = model.eval().requires_grad_(False)
        self.extractor, self.files = extractor, files
        self.sample_rate, self.n_units = extractor.sampling_rate, model.codebook.num_embeddings
        self.unit_samples = extractor.hop_length * _CONV_STRIDE * model.pool
        said = [_ALGORITHM, *(digest_file(file) for file in files)]
        self.digest = hashlib.sha256("\n".join(said).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechTokenizer":
        """The published folder: config.json, preprocessor_config.json, model.safetensors. InputError for another one.

        The encoder's weights alone, or those of the whole model, of which the rest is left out.
        """
        files, extractor, model = _opened(Path(folder))
        fill(model, _own_part(read_safetensors(files[2]), len(model.layers)), files[2])
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), extractor, files)

    def save(self, folder: str | Path) -> None:
        """Copy the files, byte for byte, for the digest is theirs."""
        copy_files(self.files, Path(folder))

    def length(self, samples: int) -> int:
        """How many units so many samples at `sample_rate` Hz give."""
        whole, rest = divmod(samples, self.extractor.n_samples)
        return whole * -(-self.extractor.n_samples // self.unit_samples) + -(-rest // self.unit_samples)

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U]; none for no samples."""
        waveform = as_mono(waveform)
        waveform = resample(waveform, sample_rate, self.sample_rate)
        if len(waveform) == 0:
            return np.zeros(0, dtype=np.int64)
        features, mask = self.features(waveform)
        return np.concatenate([self._units(*piece) for piece in zip(features, mask, strict=True)])

    def features(self, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [samples] at `sample_rate` Hz → log-mel [pieces, mel, F], and which frames are sound, bool."""
        size = self.extractor.n_samples
        given = self.extractor(
            [waveform[start : start + size] for start in range(0, len(waveform), size)],
            sampling_rate=self.sample_rate,
            return_attention_mask=True,
            return_tensors="pt",
            padding="longest",
            pad_to_multiple_of=self.unit_samples,
        )
        return given.input_features, given.attention_mask.bool()

    @torch.inference_mode()
    def _units(self, features: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        """One piece alone: what lies beside it in a batch cannot round it otherwise."""
        device = self.model.conv1.weight.device
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            units = self.model(features[None].to(device), mask[None].to(device))[0]
        return units[mask[:: _CONV_STRIDE * self.model.pool].to(device)].cpu().numpy()


def check_units(folder: Path, n_units: int, model: Path) -> None:
    """InputError unless a folder's tokenizer is whole, and has as many units as a model; its weights are not read."""
    files, _, network = _opened(Path(folder))
    if (has := network.codebook.num_embeddings) != n_units:
        raise InputError(f"{model}: {folder} has {has} units, the model's vocabulary {n_units}")
    check_state(network, _own_part(read_header(files[2]), len(network.layers)), files[2])


def _opened(folder: Path) -> tuple[tuple[Path, ...], WhisperFeatureExtractor, WhisperVQ]:
    """Its files, what makes features, and the network, which has no weights yet."""
    files = tuple(folder / name for name in _FILES)
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder}: not a speech tokenizer of GLM-4-Voice: there is no {missing[0]}")
    config, extractor = _read_config(files[0]), _read_extractor(files[1])
    _check_fit(config, extractor, files[1])
    return files, extractor, _built(config, files[0])


def _read_config(file: Path) -> WhisperConfig:
    said = read_json(file, "the config of a WhisperVQ")
    for key in _SIZES:
        if type(said.get(key)) is not int or said[key] < 1:
            raise InputError(f"{file}: {key}: expected a positive number (a WhisperVQ has one), got {said.get(key)!r}")
    for key, expected in _AS_PUBLISHED.items():
        if said.get(key, expected) != expected:
            raise InputError(f"{file}: {key}: expected {json.dumps(expected)}, as published, got {said[key]!r}")
    if said["pooling_position"] != said["quantize_position"]:
        raise InputError(f"{file}: pooling_position: expected that of the codebook, {said['quantize_position']}")
    try:
        config = WhisperConfig.from_dict(said)
    except Exception as error:  # transformers raises what the wrong value happens to provoke
        raise InputError(f"{file}: not the config of a Whisper: {' '.join(str(error).split())}") from error
    config._attn_implementation = "sdpa"
    return config


def _built(config: WhisperConfig, file: Path) -> WhisperVQ:
    try:
        with torch.device("meta"):
            return WhisperVQ(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{file}: cannot be built: {' '.join(str(error).split())}") from error


def _read_extractor(file: Path) -> WhisperFeatureExtractor:
    try:
        return WhisperFeatureExtractor.from_dict(read_json(file, "the settings of Whisper's features"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: not the settings of Whisper's features: {' '.join(str(error).split())}") from error


def _check_fit(config: WhisperConfig, extractor: WhisperFeatureExtractor, file: Path) -> None:
    if extractor.feature_size != config.num_mel_bins:
        raise InputError(f"{file}: feature_size: expected {config.num_mel_bins}, as in config.json")
    if extractor.n_samples > (holds := config.max_source_positions * extractor.hop_length * _CONV_STRIDE):
        raise InputError(f"{file}: pieces of {extractor.n_samples} samples: the positions of config.json hold {holds}")


def _own_part(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The weights that units depend on, under the encoder's names."""
    if any(name.startswith(_WHOLE_MODEL) for name in state):
        state = {name[len(_WHOLE_MODEL) :]: part for name, part in state.items() if name.startswith(_WHOLE_MODEL)}
    return {name: tensor for name, tensor in state.items() if not _is_spare(name, layers)}


def _is_spare(name: str, layers: int) -> bool:
    found = _SPARE.fullmatch(name)
    return found is not None and (found[2] is None or int(found[2]) >= layers)
