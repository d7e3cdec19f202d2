"""Speech LMs. A new one is a file here, and one line where `load_model` chooses."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from elocute.data.rows import check_rows
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models import interleaved, unit_lm
from elocute.models.interleaved import InterleavedLM
from elocute.models.reading import Template, has_labels
from elocute.models.sizes import Sizes, sizes_of
from elocute.models.speech_lm import PUBLISHED, SpeechLM, beside, read_settings
from elocute.models.tts_lm import TtsLM
from elocute.models.unit_lm import UnitLM

__all__ = [
    "InterleavedLM", "SpeechLM", "TtsLM", "UnitLM", "check_answers_questions", "check_model",
    "check_one_vocabulary", "codec_folder", "kind_of", "load_model", "load_speaker", "load_template", "reads_aloud",
    "sizes_of_model",
]  # fmt: skip

_CLASSES = {"interleaved": InterleavedLM, "units": UnitLM, "tts": TtsLM}
_VOCABULARIES = {"interleaved": interleaved.load_vocabulary, "units": unit_lm.load_vocabulary}


def load_model(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> SpeechLM:
    """Load a speech LM by its folder, on the CPU. dtype "auto": the weights' own."""
    return _class_of(folder).load(folder, dtype=dtype)


def sizes_of_model(folder: str | Path) -> Sizes:
    """How large the network of a model folder is; nothing is loaded. InputError where its files do not say."""
    return sizes_of(folder, _class_of(folder).apart)


def check_model(folder: str | Path, examples: Sequence[Example] = ()) -> None:
    """Read all of a model folder but its weights. InputError names what is missing or does not fit.

    examples: rows to be trained on; those that it cannot read aloud, and should, are an InputError too, a line each.
    """
    kind, of = kind_of(folder), _class_of(folder)
    if of.reads_aloud:
        template = of.load_template(Path(folder))
        check_rows([e for e in examples if has_labels(e) or not of.takes_questions], template.encode_row)
    elif kind in PUBLISHED.values():
        _published(kind)[1](Path(folder))
    else:
        _VOCABULARIES[kind](Path(folder))


def check_answers_questions(folder: str | Path) -> None:
    """InputError for a model that reads aloud and cannot be asked."""
    if not _class_of(folder).takes_questions:
        raise InputError(f"{folder}: a TTS model reads a text aloud, it answers no questions; see elocute speak")


def check_one_vocabulary(folder: str | Path, what: str) -> None:
    """InputError, about `what`, for a model that is more than a causal LM with text and speech in one vocabulary."""
    if (kind := kind_of(folder)) not in _CLASSES:
        raise InputError(
            f"{what}: expected a model of one vocabulary ({', '.join(_CLASSES)}), {folder} is of kind {kind}"
        )


def load_template(folder: str | Path) -> Template:
    """How a model folder's prompts to read aloud are made; checks all of the folder but its weights.

    InputError for a model that does not read aloud.
    """
    of = _class_of(folder)
    if not of.reads_aloud:
        raise InputError(f"{folder}: expected a model that reads aloud, this one answers questions; see elocute chat")
    return of.load_template(Path(folder))


def reads_aloud(folder: str | Path, examples: Sequence[Example] = ()) -> bool:
    """Whether a model is to read these rows aloud: it does nothing else, or it can and they all have labels."""
    of = _class_of(folder)
    return of.reads_aloud and (not of.takes_questions or bool(examples) and all(map(has_labels, examples)))


def codec_folder(folder: str | Path) -> Path:
    """Where the codec lies with which a model hears."""
    folder = Path(folder)
    if kind_of(folder) in ("minicpm_o", "csm", "moshi", "qwen2_5_omni"):
        return folder
    if kind_of(folder) == "units":
        return unit_lm.codec_folder(folder)
    if kind_of(folder) in PUBLISHED.values():
        return beside(folder, "speech_tokenizer", "glm-4-voice-tokenizer").resolve()
    return (folder / read_settings(folder)["codec"]).resolve()


def load_speaker(folder: str | Path) -> SpeechLM:
    """Load a speech LM to talk with: on the first GPU in the weights' own type, else on the CPU in float32."""
    if not torch.cuda.is_available():
        return load_model(folder)
    lm = load_model(folder, dtype="auto")
    lm.model.to("cuda")
    return lm


def kind_of(folder: str | Path) -> str:
    """One of KINDS, as the folder's elocute.json says, or its config.json where it was published so."""
    return read_settings(Path(folder)).get("kind", "interleaved")


def _class_of(folder: str | Path) -> type[SpeechLM]:
    kind = kind_of(folder)
    return _published(kind)[0] if kind in PUBLISHED.values() else _CLASSES[kind]


def _published(kind: str) -> tuple[type[SpeechLM], Callable[[Path], object]]:
    """A published model's class, and what reads all of its folder but weights and sound; they bring Whisper with them,
    a second that other models need not wait."""
    if kind == "kimi_audio":
        from elocute.models import kimi_lm

        return kimi_lm.KimiLM, kimi_lm.load_vocabulary
    if kind == "csm":
        from elocute.models import csm_lm

        return csm_lm.CsmLM, csm_lm.load_template
    if kind == "moshi":
        from elocute.models import moshi_lm

        return moshi_lm.MoshiLM, moshi_lm.load_vocabulary
    if kind == "minicpm_o":
        from elocute.models import minicpm_lm

        return minicpm_lm.MiniCPMLM, minicpm_lm.load_vocabulary
    if kind == "qwen2_5_omni":
        from elocute.models import omni_lm

        return omni_lm.OmniLM, omni_lm.load_vocabulary
    from elocute.models import vita_lm

    return vita_lm.VitaLM, vita_lm.load_vocabulary
