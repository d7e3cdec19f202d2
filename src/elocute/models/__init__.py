"""Speech LMs. A new one is a file here, and one line where `load_model` chooses."""

from pathlib import Path

import torch

from elocute.models import interleaved, unit_lm
from elocute.models.interleaved import InterleavedLM
from elocute.models.speech_lm import SpeechLM, read_settings
from elocute.models.unit_lm import UnitLM

__all__ = ["InterleavedLM", "SpeechLM", "UnitLM", "check_model", "load_model", "load_speaker"]


def load_model(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> InterleavedLM | UnitLM:
    """Load a speech LM by its folder, on the CPU. dtype "auto": the weights' own."""
    kind = UnitLM if _speaks_units(folder) else InterleavedLM
    return kind.load(folder, dtype=dtype)


def check_model(folder: str | Path) -> None:
    """Read all of a model folder but its weights. InputError names what is missing or does not fit."""
    (unit_lm if _speaks_units(folder) else interleaved).load_vocabulary(Path(folder))


def load_speaker(folder: str | Path) -> InterleavedLM | UnitLM:
    """Load a speech LM to talk with: on the first GPU in the weights' own type, else on the CPU in float32."""
    if not torch.cuda.is_available():
        return load_model(folder)
    lm = load_model(folder, dtype="auto")
    lm.model.to("cuda")
    return lm


def _speaks_units(folder: str | Path) -> bool:
    return read_settings(Path(folder)).get("kind") == "units"
