"""A published Qwen2.5-Omni folder: its config, and where its weights lie."""

import json
from pathlib import Path

from transformers import Qwen2_5OmniConfig

from elocute.data.shards import Shards
from elocute.errors import InputError

PARTS = ("thinker.", "talker.", "token2wav.")


def read_config(folder: str | Path) -> Qwen2_5OmniConfig:
    """config.json. InputError for another model's, and for one that writes only."""
    file = Path(folder) / "config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said.get("model_type") != "qwen2_5_omni":
            raise ValueError(f"model_type: expected qwen2_5_omni, got {said.get('model_type')!r}")
        config = Qwen2_5OmniConfig.from_dict(said)
    except Exception as error:  # the config's own checks raise what they like
        raise InputError(f"{file}: not the config of a Qwen2.5-Omni: {_first_line(error)}") from error
    if not config.enable_audio_output:
        raise InputError(f"{file}: enable_audio_output: false: this one writes only, it has no talker")
    return config


def open_folder(folder: str | Path) -> tuple[Qwen2_5OmniConfig, Shards]:
    """A folder's config and where its weights lie. InputError for names of no known part."""
    config, source = read_config(folder), Shards.open(folder)
    if strange := [name for name in source.names() if not name.startswith(PARTS)]:
        raise InputError(f"{folder}: the weights hold {strange[0]}, for which a Qwen2.5-Omni has no place")
    return config, source


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
