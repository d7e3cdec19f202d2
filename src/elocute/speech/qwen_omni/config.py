"""A published Qwen2.5-Omni folder: its config, and where its weights lie."""

import json
import re
from pathlib import Path

import torch
from transformers import Qwen2_5OmniConfig

from elocute.data.shards import Shards
from elocute.errors import InputError

PARTS = ("thinker.", "talker.", "token2wav.")
_COMPUTED = re.compile(r"(^|\.)(inv_freq|filter|positional_embedding\.positional_embedding)$")
"""Buffers that some releases of transformers wrote beside the weights; they are worked out, and copied as they are."""


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


def shapes_of(source: Shards, prefix: str, skip: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """The shapes of a part's weights by name, the prefix taken off; skip: but for names that begin so."""
    return {name: of for name, of in source.shapes(prefix, skip=skip).items() if not _COMPUTED.search(name)}


def read_part(
    source: Shards, prefix: str, dtype: torch.dtype | str, skip: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The same weights themselves. dtype "auto": in the type they are stored in."""
    return {name: of for name, of in source.read(prefix, dtype, skip=skip).items() if not _COMPUTED.search(name)}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
