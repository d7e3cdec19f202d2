"""What a recipe says about one reward: `kind` chooses it, `weight` and `gate` say how it counts.

rewards:
  - {kind: rule, column: answer}
  - {kind: asr, weight: 0.5, gate: {reward: rule, at_least: 1}, ear: {kind: pocketsphinx, vocabulary: answers.txt}}
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, FilePath, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Reference = Literal["written", "prompt"]
_STATISTICS = ("mean", "std", "max")  # of the combined reward, beside which a reward's own mean stands in the metrics


class _Spec(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class GateSpec(_Spec):
    """The gated reward counts only where `reward` is at least `at_least`; elsewhere it contributes its lowest value."""

    reward: str
    """Name of another reward."""
    at_least: float
    """Its least value at which this one counts."""


class _RewardSpec(_Spec):
    kind: str
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = ""
    """How metrics and gates call it; default: its kind."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """0: measured (and used by gates) without counting."""
    gate: GateSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_by_kind(cls, values):
        if isinstance(values, dict) and values.get("name") is None:
            values = {**values, "name": values.get("kind")}
        return values

    @field_validator("name")
    @classmethod
    def _not_a_statistic(cls, name: str) -> str:
        if name in _STATISTICS:
            raise ValueError(f"{name} already names a statistic of all rewards; choose another name")
        return name


class RuleSpec(_RewardSpec):
    """1 when the text agrees with a column of the row, else 0."""

    kind: Literal["rule"]
    column: str
    """Column with one accepted answer or a list."""
    match: Literal["exact", "regex", "number"] = "exact"
    """How the text is compared, see docs/own-reward.md."""


class PocketSphinxSpec(_Spec):
    """The bundled offline recogniser."""

    kind: Literal["pocketsphinx"]
    vocabulary: FilePath | None = None
    """A file with one sentence or word a line: all that a closed domain says; default: open vocabulary."""
    workers: Count = 1
    """Processes that listen."""


class TransformersEarSpec(_Spec):
    """A local Whisper or CTC folder."""

    kind: Literal["transformers"]
    path: DirectoryPath
    """A local Whisper or CTC folder."""
    batch_size: Count = 8
    """Answers at a time."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


EarSpec = Annotated[PocketSphinxSpec | TransformersEarSpec, Field(discriminator="kind")]


class AsrSpec(_RewardSpec):
    """How few words were misheard: a falling function of the WER between what should be said and what is heard."""

    kind: Literal["asr"]
    ear: EarSpec = PocketSphinxSpec(kind="pocketsphinx")
    form: Literal["exp", "linear", "tanh"] = "exp"
    """`exp`: exp(-2.5·WER); `linear`: 1 - WER, a WER above 1 counts as 1; `tanh`: 1 - tanh(3·WER)."""
    reference: Reference = "written"
    """What should be said. `written`: the text that the model wrote; `prompt`: the last user turn, for models that
    speak a given text."""


class _TextModelSpec(_RewardSpec):
    path: DirectoryPath
    """A local model folder."""
    batch_size: Count = 32
    """Answers at a time."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


class EmbeddingSpec(_TextModelSpec):
    """Cosine between the text and a reference column."""

    kind: Literal["embedding"]
    column: str
    """Column with one reference or a list; the nearest counts."""


class ClassifierSpec(_TextModelSpec):
    """Probability of one label of a local sequence classifier."""

    kind: Literal["classifier"]
    label: str
    """The label whose probability is the reward."""


class _ContinuationSpec(_RewardSpec):
    batch_size: Count = 16
    """Continuations at a time."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


class PerplexitySpec(_ContinuationSpec):
    """exp(mean log p a token) of the continuation given the prompt's words, by a local text LM."""

    kind: Literal["perplexity"]
    path: DirectoryPath | None = None
    """A local causal LM folder; default: SmolLM2-135M-Instruct of the extra `local-judges`."""


class CoherenceSpec(_ContinuationSpec):
    """1 to 5: does the continuation follow from the prompt? By a local text LM, see docs/continuation-judges.md."""

    kind: Literal["coherence"]
    path: DirectoryPath | None = None
    """A local causal LM folder; default: SmolLM2-135M-Instruct of the extra `local-judges`."""


class RelatednessSpec(_ContinuationSpec):
    """1 to 5: is the continuation about the same thing as the prompt? By a local encoder of sentences."""

    kind: Literal["relatedness"]
    path: DirectoryPath | None = None
    """A local encoder folder; default: all-MiniLM-L6-v2 of the extra `local-judges`."""


class FunctionSpec(_RewardSpec):
    """A Python callable with TRL's signature: "module:name" or "path/file.py:name"."""

    kind: Literal["function"]
    function: str
    """The callable's address."""
    low: float
    """Least value it may give."""
    high: float
    """Highest value it may give."""
    conversational: bool = True
    """Prompts and completions are lists of messages; false: strings."""

    @model_validator(mode="after")
    def _range(self) -> "FunctionSpec":
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


class JudgeSpec(_RewardSpec):
    """A chat model that hears or reads; its key and address come from the environment (see rewards/chat.py)."""

    kind: Literal["judge"]
    rubric: Literal["holistic", "semantic", "acoustic", "continuation"] = "holistic"
    """What the judge is asked for."""
    model: str | None = None
    """Default: WAVALIGN_REWARD_MODEL or OPENAI_MODEL."""
    send_audio: bool = True
    """Send question and answer as audio; false for a judge that only reads."""
    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    """None leaves it to the endpoint."""
    max_tokens: Count = 1024
    """Longest reply."""
    concurrency: Count = 8
    """Requests in flight."""
    timeout: Seconds = 60.0
    """Seconds for one try."""
    attempts: Count = 4
    """Tries a request."""
    deadline: Seconds = 300.0
    """Seconds for a whole batch, retries included."""
    cache: Path | None = None
    """A folder of replies, so that nothing is asked twice."""


RewardSpec = Annotated[
    RuleSpec
    | AsrSpec
    | EmbeddingSpec
    | ClassifierSpec
    | PerplexitySpec
    | CoherenceSpec
    | RelatednessSpec
    | FunctionSpec
    | JudgeSpec,
    Field(discriminator="kind"),
]
