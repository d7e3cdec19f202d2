"""A reward's answer is one of three, and never a made-up number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from elocute.data.types import Answer


@dataclass(frozen=True)
class Scored:
    """The sample was judged. `detail` is what a person wants to see beside the number (transcript, justification …)."""

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Invalid:
    """The sample is bad (empty audio, no end, unparsable): it gets the recipe's declared penalty."""

    reason: str


@dataclass(frozen=True)
class Unavailable:
    """The judge is bad (time-out, 5xx, malformed, out of range): the sample leaves statistics and gradient, counted."""

    reason: str


Outcome = Scored | Invalid | Unavailable


class Reward(Protocol):
    """A reward judges a batch. One outcome an answer, in the same order; `low` and `high` bound a scored value."""

    name: str
    low: float
    high: float

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]: ...
