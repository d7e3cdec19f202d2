"""What a recipe says about one reward: `kind` chooses it, `weight` and `gate` say how it counts.

rewards:
  - {kind: rule, column: answer}
  - {kind: asr, weight: 0.5, gate: {reward: rule, at_least: 1}, ear: {kind: pocketsphinx, vocabulary: answers.txt}}
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    DirectoryPath,
    Field,
    FilePath,
    ValidationError,
    WrapValidator,
    model_validator,
)

from elocute.recipe.ears import Count, EarSpec, PocketSphinxSpec, Spec
from elocute.recipe.reward_base import RewardBase

Seconds = Annotated[float, Field(gt=0)]
Reference = Literal["written", "prompt"]
MEANS = {"concurrency", "timeout", "attempts", "deadline", "cache", "workers", "batch_size", "device"}
"""Keys of a reward that change how it is computed and not what: they may differ when the work goes on."""
_Rubric = Literal["holistic", "semantic", "acoustic", "continuation"]


def _rubric(value: Any, validate: Any) -> str | Path:
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"expected {', '.join(_Rubric.__args__)} or a text file, got {value!r}") from None


def _is_there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"no such folder or file: {path}")
    return path


Rubric = Annotated[_Rubric | FilePath, WrapValidator(_rubric)]


class RuleSpec(RewardBase):
    """1 when the text agrees with a column of the row, else 0."""

    kind: Literal["rule"]
    column: str
    """Column with one accepted answer or a list."""
    match: Literal["exact", "regex", "number"] = "exact"
    """How the text is compared, see docs/own-reward.md."""


class AsrSpec(RewardBase):
    """Are the words there? A falling function of the WER between what should be said and what is heard, or how likely
    the ear finds it."""

    kind: Literal["asr"]
    ear: EarSpec = PocketSphinxSpec(kind="pocketsphinx")
    form: Literal["exp", "linear", "tanh", "likelihood"] = "exp"
    """`exp`: exp(-2.5·WER); `linear`: 1 - WER, a WER above 1 counts as 1; `tanh`: 1 - tanh(3·WER); `likelihood`: how
    probable a CTC ear (`kind: transformers`) finds a letter of what should be said, see docs/prosody-rewards.md."""
    reference: Reference = "written"
    """What should be said. `written`: the text that the model wrote; `prompt`: the last user turn, for models that
    speak a given text."""
    word_credit: Annotated[float, Field(ge=0)] = 0.0
    """Of TTS models: weight of each word's own advantage on its speech tokens, see docs/losses.md; 0: off."""

    @model_validator(mode="after")
    def _ear_of_form(self) -> "AsrSpec":
        if self.form == "likelihood" and self.ear.kind != "transformers":
            raise ValueError(f"form: likelihood: expected an ear of kind transformers, got {self.ear.kind}")
        return self


class _TextModelSpec(RewardBase):
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


class _ContinuationSpec(RewardBase):
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


class FunctionSpec(RewardBase):
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


class _AskedSpec(Spec):
    model: str | None = None
    """Default: WAVALIGN_REWARD_MODEL or OPENAI_MODEL."""
    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    """None leaves it to the endpoint."""
    concurrency: Count = 32
    """Requests in flight."""
    timeout: Seconds = 60.0
    """Seconds for one try."""
    attempts: Count = 4
    """Tries a request."""
    deadline: Seconds = 300.0
    """Seconds for a whole batch, retries included."""
    cache: Path | None = None
    """A folder of replies, so that nothing is asked twice."""


class JudgeSpec(_AskedSpec, RewardBase):
    """A chat model that hears or reads; its key and address come from the environment (see rewards/chat.py)."""

    kind: Literal["judge"]
    rubric: Rubric = "holistic"
    """What the judge is asked for; a text file: your own rubric, for the scale from 1 to 5."""
    send_audio: bool = True
    """Send question and answer as audio; false for a judge that only reads."""
    max_tokens: Count = 1024
    """Longest reply."""


class _ChatModelSpec(Spec):
    path: DirectoryPath
    """A local folder of a chat model."""
    batch_size: Count = 4
    """Answers at a time."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the model's weights."""


class LocalJudgeSpec(_ChatModelSpec, RewardBase):
    """1 to 5 by a chat model on disk that reads (Mistral) or hears (Qwen2-Audio), see docs/judges.md."""

    kind: Literal["local_judge"]
    path: Annotated[Path, AfterValidator(_is_there)]
    """A local folder of a chat model, or a `.gguf` file of one that reads."""
    rubric: Rubric = "holistic"
    """What the judge is asked for; a text file: your own rubric, for the scale from 1 to 5."""
    send_audio: bool = True
    """Let it hear question and answer; false for a model that only reads."""
    verdict: Literal["written", "likelihood"] = "written"
    """`written`: it writes its reasons and a score; `likelihood`: the mean of 1 to 5, each as probable as the model
    finds it as its reply."""
    max_tokens: Count = 512
    """Longest written reply."""


class _LabelSpec(RewardBase):
    labels: str = "paper"
    """The prosody schema that the rows' `labels` are of: `paper`, `rlaif_spa` or a YAML file, see docs/labels.md."""
    dimensions: Annotated[list[str], Field(min_length=1)] | None = None
    """Those that are judged; default: all of the schema that can be."""


class ProsodySpec(_LabelSpec):
    """Does the voice do what the row's labels ask for? Measured: speed, pitch, energy; see docs/prosody-rewards.md."""

    kind: Literal["prosody"]
    measures: dict[str, list[str]] = {}
    """Dimension: what of the voice decides its label; default: the schema's `measure`."""
    recordings: FilePath | None = None
    """Rows with `labels` and `sft_target_audio` that show what each label sounds like; default: the schema's
    `bounds`."""
    credit: Literal["closeness", "match", "ordinal", "probability"] = "closeness"
    """What a voice is worth that is not quite the label's, see docs/prosody-rewards.md."""
    reference: Reference = "prompt"
    """The text whose phones and syllables are counted, as for `asr`."""


class EmotionSpec(RewardBase):
    """Probability of the row's label by a local audio classifier."""

    kind: Literal["emotion"]
    path: DirectoryPath
    """A local folder of a transformers audio classifier."""
    dimension: str = "emotion"
    """Of the row's `labels`."""
    label_map: dict[str, list[str]] = {}
    """A row's label: the model's labels that mean it; default: the model's label of the same name."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


class LocalListenerSpec(_ChatModelSpec):
    """An audio LLM on disk, such as Qwen2-Audio; a label is as probable as the model finds it as a reply."""

    kind: Literal["transformers"]


class EndpointSpec(_AskedSpec):
    """A chat model that hears; its key and address come from the environment (see rewards/chat.py)."""

    kind: Literal["endpoint"]


class AudioJudgeSpec(_LabelSpec):
    """Which labels does a model hear that listens? See docs/prosody-rewards.md."""

    kind: Literal["audio_judge"]
    listener: Annotated[LocalListenerSpec | EndpointSpec, Field(discriminator="kind")]
    credit: Literal["match", "ordinal", "probability"] = "probability"
    """What a label is worth that is not the row's, see docs/prosody-rewards.md."""

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        return getattr(self.listener, "concurrency", 1)


class GuardSpec(RewardBase):
    """1 where what is measured of the voice keeps within limits, else 0; its means and alarms are in the metrics.

    Its default weight is 0."""

    kind: Literal["guard"]
    weight: Annotated[float, Field(ge=0)] = 0.0
    """0: alarms only; above 0: also a penalty."""
    limits: dict[str, tuple[float | None, float | None]] = {
        "phones_per_second": (4.0, 30.0),
        "pitch_range": (1.0, None),
        "silence_share": (None, 0.6),
        "clipping_share": (None, 0.01),
    }
    """Measure: its least and its most, null for none; the measures are those of `elocute.prosody.measure.Prosody`."""
    reference: Reference = "prompt"
    """The text whose phones and syllables are counted, as for `asr`."""

    @model_validator(mode="after")
    def _limits(self) -> "GuardSpec":
        for measure, (least, most) in self.limits.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"limits: {measure}: expected its least and then its most, got {least:g} and {most:g}")
        return self


class SpeakerSpec(RewardBase):
    """Cosine between the voice and that of a recording, by a local x-vector model: a guard, of default weight 0."""

    kind: Literal["speaker"]
    weight: Annotated[float, Field(ge=0)] = 0.0
    """0: alarms only; as a goal it can destabilise."""
    path: DirectoryPath
    """A local folder such as wavlm-base-plus-sv."""
    reference: FilePath | None = None
    """A recording of the voice; default: each row's `sft_target_audio`."""
    device: str | None = None
    """Default: the first GPU, else the CPU."""


class DnsmosSpec(RewardBase):
    """How good the sound is, 1 to 5, by DNSMOS P.835: a guard, of default weight 0. Needs the extra `dnsmos`."""

    kind: Literal["dnsmos"]
    weight: Annotated[float, Field(ge=0)] = 0.0
    """0: alarms only."""
    path: FilePath | None = None
    """Your copy of `sig_bak_ovr.onnx`; default: the one in the package `speechmos`."""


RewardSpec = Annotated[
    RuleSpec
    | AsrSpec
    | EmbeddingSpec
    | ClassifierSpec
    | PerplexitySpec
    | CoherenceSpec
    | RelatednessSpec
    | FunctionSpec
    | JudgeSpec
    | LocalJudgeSpec
    | ProsodySpec
    | EmotionSpec
    | AudioJudgeSpec
    | GuardSpec
    | SpeakerSpec
    | DnsmosSpec,
    Field(discriminator="kind"),
]

LabelListenerSpec = Annotated[ProsodySpec | EmotionSpec | AudioJudgeSpec, Field(discriminator="kind")]
"""Rewards that say which labels they hear."""


def without_means(entry: Any) -> Any:
    """A reward's or an ear's entry in the recipe without `MEANS`, those of its sections neither."""
    if not isinstance(entry, dict):
        return entry
    return {key: without_means(value) for key, value in entry.items() if key not in MEANS}


def deciding(rewards: Sequence[Mapping[str, Any]], listen: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """What decides a run, by name: the rewards of its recipe that count, gate or credit, and the ear `listen`."""
    counting = {reward["gate"]["reward"] for reward in rewards if reward.get("gate")}
    named = {reward.get("name") or reward["kind"]: reward for reward in rewards}
    counts = ("unit_credit", "word_credit")
    counting |= {name for name, own in named.items() if own.get("weight", 1) > 0 or any(map(own.get, counts))}
    found = {name: entry for name, entry in named.items() if name in counting}
    return found | ({"listen": listen} if listen else {})


def same_judge(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries are one judge: of one kind, path, model, rubric, function, column and label.

    How it samples, which words its ear may hear and what it counts do not make it another. A reward that listens is
    its ear.
    """
    return _who(one) == _who(other)


def _who(entry: Mapping[str, Any]) -> tuple:
    entry = entry.get("ear") or entry.get("listener") or entry
    path = entry.get("path") and os.path.realpath(entry["path"])
    file, colon, name = (entry.get("function") or "").rpartition(":")
    function = f"{os.path.realpath(file)}:{name}" if file.endswith(".py") else f"{file}{colon}{name}"
    return (path, function, *(entry.get(key) for key in ("kind", "model", "rubric", "column", "label")))
