"""What a recipe says about an ear: the recogniser of a reward, of an evaluation, or of a model that does not write."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, FilePath

Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """A section of a reward or an ear."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class PocketSphinxSpec(Spec):
    """The bundled offline recogniser."""

    kind: Literal["pocketsphinx"]
    vocabulary: FilePath | None = None
    """A file with one sentence or word a line: all that a closed domain says; default: open vocabulary."""
    workers: Count = 1
    """Processes that listen."""


class TransformersEarSpec(Spec):
    """A local Whisper or CTC folder."""

    kind: Literal["transformers"]
    path: DirectoryPath
    """A local Whisper or CTC folder."""
    batch_size: Count = 8
    """Answers at a time."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


class FasterWhisperSpec(Spec):
    """Whisper in CTranslate2's format, int8. Needs the extra `faster-whisper`."""

    kind: Literal["faster_whisper"]
    path: DirectoryPath | None = None
    """A local folder that CTranslate2 wrote; default: tiny.en of the extra `faster-whisper`."""
    workers: Count = 1
    """Answers that are heard side by side, each on one core."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda` needs the CUDA libraries that CTranslate2 was built with."""


EarSpec = Annotated[PocketSphinxSpec | TransformersEarSpec | FasterWhisperSpec, Field(discriminator="kind")]
