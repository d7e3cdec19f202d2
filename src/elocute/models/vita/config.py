"""What a published VITA-Audio folder says of its LLM: a Qwen2 whose last layers predict tokens further ahead.

`num_hidden_layers` counts all layers that the weights hold, those of multi-token prediction (MTP) included; the first
`n_main` of them are the LLM. Two kinds are published and told apart by `model_type`, or by `architectures`:

    qwen2_mtp             Qwen2MTPForCausalLM            Boost, Balance: the user's audio is discrete units
    qwen2_mtp_sensevoice  Qwen2MTPSenseVoiceForCausalLM  Plus: the user's audio is SenseVoice's features
"""

from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from elocute.data.files import read_json
from elocute.errors import InputError


@strict
class VitaConfig(Qwen2Config):
    """Boost and Balance. The defaults are the original's, for keys that a config.json leaves out."""

    model_type = "qwen2_mtp"
    num_nextn_predict_layers: int = 1

    @property
    def n_mtp(self) -> int:
        """How many tokens further ahead than the main head the model predicts; 0: none."""
        return self.num_nextn_predict_layers

    @property
    def n_main(self) -> int:
        """Layers of the LLM."""
        return self.num_hidden_layers - self.num_nextn_predict_layers

    @property
    def hears_features(self) -> bool:
        """Whether the user's audio comes in as features that replace embeddings, else as units."""
        return self.model_type == VitaPlusConfig.model_type


@strict
class VitaPlusConfig(VitaConfig):
    """Plus. audio_state_size: of what the audio encoder gives; the published file does not say it, the weights do."""

    model_type = "qwen2_mtp_sensevoice"
    audio_state_size: int = 512


_CLASSES = {kind.model_type: kind for kind in (VitaConfig, VitaPlusConfig)}
_ARCHITECTURES = {"Qwen2MTPForCausalLM": "qwen2_mtp", "Qwen2MTPSenseVoiceForCausalLM": "qwen2_mtp_sensevoice"}


def read_config(folder: Path) -> VitaConfig:
    """config.json of a published folder. InputError when it is that of another model, or makes no sense."""
    file = folder / "config.json"
    said = read_json(file, "the config of a VITA-Audio")
    kind = _kind(file, said)
    try:
        own = {key: value for key, value in said.items() if key != "model_type" and "attn_implementation" not in key}
        config = _CLASSES[kind](**own)  # how attention is computed is not the authors' machine's to say
    except Exception as error:  # transformers' checks raise what they like
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: not a config of {kind}: {reason}") from error
    if config.n_mtp < 0 or config.n_main < 1:
        raise InputError(
            f"{file}: num_nextn_predict_layers: expected 0 … {config.num_hidden_layers - 1}, for they are counted in "
            f"num_hidden_layers {config.num_hidden_layers}, got {config.n_mtp}"
        )
    if config.tie_word_embeddings:
        raise InputError(f"{file}: tie_word_embeddings: expected false, the head has weights of its own")
    if config.use_sliding_window:
        raise InputError(f"{file}: use_sliding_window: expected false, every layer attends to the whole past")
    return config


def _kind(file: Path, said: dict) -> str:
    named = [said.get("model_type"), *map(_ARCHITECTURES.get, said.get("architectures") or [])]
    kinds = {kind for kind in named if kind in _CLASSES}
    if len(kinds) != 1:
        raise InputError(
            f"{file}: model_type: expected {' or '.join(_CLASSES)}, got {said.get('model_type')!r} "
            f"of architectures {said.get('architectures')!r}"
        )
    return kinds.pop()


def read_mode(folder: Path, config: VitaConfig) -> list[int]:
    """`mtp_inference_mode` of generation_config.json (see `decoding`); the original's default is [1, n_mtp]."""
    said = published_mode(folder)
    return [1, config.n_mtp] if said is None else said


def published_mode(folder: Path) -> list[int] | None:
    """The same, None where the file or the key is not there."""
    file = folder / "generation_config.json"
    mode = read_json(file, "a generation config").get("mtp_inference_mode") if file.is_file() else None
    if mode is not None and not (isinstance(mode, list) and all(type(count) is int for count in mode)):
        raise InputError(f"{file}: mtp_inference_mode: expected a list of whole numbers, got {mode!r}")
    return mode
