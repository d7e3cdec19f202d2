"""A model that listens says which labels it hears: an audio LLM on disk, or a chat model at an endpoint."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example, Utterance
from elocute.errors import InputError
from elocute.prosody.schema import Dimension, Schema
from elocute.rewards.ask import ask_once
from elocute.rewards.chat import ChatEndpoint
from elocute.rewards.judge import sound_part
from elocute.rewards.judge_cache import JudgeCache
from elocute.rewards.labels import Credit, certain, credit, labels_of, read_labels
from elocute.rewards.labels import heard as likeliest
from elocute.rewards.local_chat import LocalChat, Question
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper

Heard = Mapping[str, np.ndarray]
"""Dimension: how probable each of its labels is, [labels]."""

_QUESTION = """{description}

{labels}

Listen to how it is said, not to what the words mean. What is the {name} of this speech? Reply with one of: {names}."""

_REQUEST = """You judge recorded speech. Choose the label that fits best in each dimension:

{description}

Listen to how it is said, not to what the words mean: the same words can be said with any label. Reply with one JSON
object that holds a label for each of: {names}."""


class Listener(Protocol):
    """One finding an utterance, in the same order: `dimensions` are those that must be judged."""

    def __call__(self, utterances: Sequence[Utterance], schema: Schema) -> list[Heard | Unavailable]: ...


class AudioJudgeReward:
    """Mean over the row's labels of what the listener's labels are worth (labels.credit), in [0, 1].

    With credit "match" and four labels this is RLAIF-SPA's matches / 4. dimensions: those that are judged; None: all of
    the schema. `detail` holds the labels heard (labels.LabelListener) and each dimension's credit.
    """

    low, high = 0.0, 1.0

    def __init__(
        self,
        name: str,
        listener: Listener,
        schema: Schema,
        credit: Credit = "probability",
        dimensions: Collection[str] | None = None,
    ):
        self.name, self.listener, self.credit = name, listener, credit
        self.schema = schema if dimensions is None else schema.only(dimensions)
        self.all_labels = schema
        if hasattr(listener, "endpoint"):
            self.endpoint = listener.endpoint
        self.dimensions = tuple(self.schema.dimensions)
        self.measures = tuple(f"credit_{dimension}" for dimension in self.dimensions)

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a label that is judged."""
        check_rows(examples, self._wanted)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=True)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        wanted = [self._wanted(answer.example) for answer in answers]
        findings: dict[int, Heard | Unavailable] = {}
        for names in {tuple(labels) for labels in wanted}:  # the listener is asked for what the row asks for, no more
            own = [i for i, labels in enumerate(wanted) if tuple(labels) == names]
            heard = self.listener([answers[i].utterance for i in own], self.schema.only(names))
            findings |= zip(own, heard, strict=True)
        return [self._outcome(labels, findings[i]) for i, labels in enumerate(wanted)]

    def _outcome(self, wanted: Mapping[str, str], heard: Heard | Unavailable) -> Outcome:
        if isinstance(heard, Unavailable):
            return heard
        if not all(np.isfinite(probabilities).all() for probabilities in heard.values()):
            return Unavailable("the judge's probabilities are not finite")
        dimensions = self.schema.dimensions
        credits = {n: credit(dimensions[n], label, heard[n], self.credit) for n, label in wanted.items()}
        detail = {"heard": {name: likeliest(dimensions[name], heard[name]) for name in wanted}}
        detail |= {f"credit_{name}": value for name, value in credits.items()}
        return Scored(math.fsum(credits.values()) / len(credits), detail)

    def _wanted(self, example: Example) -> dict[str, str]:
        return labels_of(example, self.all_labels, self.schema.dimensions)


class LocalListener:
    """Asks an audio LLM for one dimension at a time; a label is as probable as the model finds it as a reply."""

    def __init__(self, chat: LocalChat):
        if not chat.hears:
            raise InputError(f"{chat.path}: expected a model that hears, found one that only reads")
        self.chat = chat

    def __call__(self, utterances: Sequence[Utterance], schema: Schema) -> list[Heard | Unavailable]:
        found: list[dict[str, np.ndarray] | Unavailable] = [{} for _ in utterances]
        for name, dimension in schema.dimensions.items():
            questions = [Question(((u.waveform, u.sample_rate), question(dimension))) for u in utterances]
            for i, scores in enumerate(self.chat.log_probs(questions, list(dimension.labels))):
                if isinstance(scores, Unavailable):
                    found[i] = scores
                elif not isinstance(found[i], Unavailable):
                    p = np.exp(scores - scores.max())
                    found[i] |= {name: p / p.sum()}
        return found


class EndpointListener:
    """Asks a chat model that hears, at an OpenAI-compatible endpoint, for all dimensions at once, as structured output.

    cache: a folder for valid replies. What is no object of valid labels is Unavailable, never a label.
    """

    def __init__(self, endpoint: ChatEndpoint, *, temperature: float | None = 0.0, cache: JudgeCache | None = None):
        self.endpoint, self.cache = endpoint, cache
        self.sampling = {} if temperature is None else {"temperature": temperature}

    def __call__(self, utterances: Sequence[Utterance], schema: Schema) -> list[Heard | Unavailable]:
        requests = [self.request(utterance, schema) for utterance in utterances]
        replies = ask_once(self.endpoint, self.cache, requests, lambda reply: read_labels(reply, schema))
        return [reply if isinstance(reply, Unavailable) else _as_heard(reply, schema) for reply in replies]

    def request(self, utterance: Utterance, schema: Schema) -> dict[str, Any]:
        """The chat-completions body for one utterance."""
        system = _REQUEST.format(description=schema.description(), names=", ".join(schema.dimensions))
        sound = [sound_part(utterance.waveform, utterance.sample_rate)]
        form = {"name": "prosody", "strict": True, "schema": schema.json_schema()}
        return {
            "model": self.endpoint.entry.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": sound}],
            "response_format": {"type": "json_schema", "json_schema": form},
            **self.sampling,
        }


def question(dimension: Dimension) -> str:
    """What a model on disk is asked about one dimension."""
    labels = "\n".join(f"- {label}: {what}" if what else f"- {label}" for label, what in dimension.labels.items())
    return _QUESTION.format(
        description=dimension.description, labels=labels, name=dimension.name, names=", ".join(dimension.labels)
    )


def _as_heard(labels: Mapping[str, str], schema: Schema) -> Heard:
    return {name: certain(schema.dimensions[name], label) for name, label in labels.items()}
