"""What a published Kimi-Audio folder says of its network (Kimi-Audio Technical Report, 2025): config.json."""

import json
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2Config

from elocute.data.files import read_json
from elocute.errors import InputError

ARCHITECTURE = "MoonshotKimiaForCausalLM"
_NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "kimia_token_offset", "kimia_mimo_layers", "kimia_mimo_transformer_from_layer_index",
    "kimia_adaptor_input_dim",
)  # fmt: skip
_POSITIVE = set(_NEEDED) - {"kimia_mimo_transformer_from_layer_index"}
_FIXED = {
    "tie_word_embeddings": False,
    "use_whisper_feature": True,
    "use_sliding_window": False,
    "hidden_act": "silu",
}
"""What the network is built for; a checkpoint that says otherwise is another model."""
_OTHERS = ("max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout")


class KimiConfig(Qwen2Config):
    """A Qwen2 over text and codes in one vocabulary, with a branch of further layers for the audio stream.

    kimia_token_offset: code c is token offset + c; below stand text and special tokens. kimia_mimo_layers: layers of
    the branch, which begins with the residual stream after layer kimia_mimo_transformer_from_layer_index.
    kimia_adaptor_input_dim: width of the folded Whisper features. kimia_mimo_audiodelaytokens: how many blanks stand
    before an answer's first code; the original samples with 6 whatever its config says.
    """

    model_type = "kimi_audio"

    kimia_token_offset: int = 152064
    kimia_mimo_layers: int = 6
    kimia_mimo_transformer_from_layer_index: int = 21
    kimia_mimo_audiodelaytokens: int = 6
    kimia_adaptor_input_dim: int = 5120
    kimia_media_begin: int = 151661
    kimia_media_end: int = 151663
    rms_norm_eps: float = 1e-6

    @property
    def n_codes(self) -> int:
        """Codes are 0 … n_codes − 1."""
        return self.vocab_size - self.kimia_token_offset


def read_config(folder: str | Path) -> KimiConfig:
    """A published folder's config, checked. InputError names the key that is missing or does not fit."""
    file = Path(folder) / "config.json"
    said = read_json(file, "the config of a Kimi-Audio")
    if (named := said.get("architectures")) != [ARCHITECTURE]:  # model_type is not the same in all copies
        raise InputError(f"{file}: architectures: expected [{ARCHITECTURE!r}], got {named!r}")
    own = [name for name in KimiConfig.__annotations__ if name.startswith("kimia_")]
    known = {key: said[key] for key in (*_NEEDED, *_OTHERS, *own) if key in said}
    for key in (*_NEEDED, *own):
        least = int(key in _POSITIVE)
        if (key in _NEEDED or key in said) and (type(said.get(key)) is not int or said[key] < least):
            raise InputError(f"{file}: {key}: expected an integer from {least} on, got {said.get(key)!r}")
    for key, expected in _FIXED.items():
        if said.get(key, expected) != expected:
            raise InputError(f"{file}: {key}: expected {json.dumps(expected)}, got {said[key]!r}")
    dtype = said.get("dtype", said.get("torch_dtype"))
    try:
        config = KimiConfig(**known, dtype=dtype, rope_parameters=_rope(file, said))
    except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:300]}") from error
    _check_sizes(file, config)
    return config


def _rope(file: Path, said: dict) -> dict:
    """rope_parameters: transformers would take 10000 unless the older key is copied.

    10000 is also what the original's class takes where the key is missing.
    """
    if scaling := said.get("rope_scaling"):
        raise InputError(f"{file}: rope_scaling: expected none, got {scaling!r}")
    newer = said.get("rope_parameters") or {}
    if newer.get("rope_type", "default") != "default":
        raise InputError(f"{file}: rope_parameters: rope_type: expected default, got {newer['rope_type']!r}")
    theta = said.get("rope_theta", newer.get("rope_theta", 10000.0))
    if type(theta) not in (int, float) or not theta > 1:
        raise InputError(f"{file}: rope_theta: expected a number above 1, got {theta!r}")
    return {"rope_type": "default", "rope_theta": float(theta)}


def _check_sizes(file: Path, config: KimiConfig) -> None:
    branch = config.kimia_mimo_transformer_from_layer_index
    if branch >= config.num_hidden_layers:
        raise InputError(
            f"{file}: kimia_mimo_transformer_from_layer_index: expected a layer below {config.num_hidden_layers}, "
            f"got {branch}"
        )
    if config.hidden_size % config.num_attention_heads or config.num_attention_heads % config.num_key_value_heads:
        raise InputError(f"{file}: hidden_size, num_attention_heads and num_key_value_heads do not divide evenly")
    if config.n_codes < 1:
        raise InputError(
            f"{file}: kimia_token_offset: {config.kimia_token_offset} leaves no code in a vocabulary of "
            f"{config.vocab_size}"
        )
