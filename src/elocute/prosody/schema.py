"""The prosody schema: the dimensions in which speech is described, their labels, and how a model is told them.

One YAML file that labeller, prompts, judges and `elocute speak` all read: `paper.yaml` or `rlaif_spa.yaml` beside this
file, or a user's own. Every key is explained in docs/labels.md.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from elocute.errors import InputError
from elocute.recipe.load import read_yaml

SHIPPED = {name: Path(__file__).with_name(f"{name}.yaml") for name in ("paper", "rlaif_spa")}
NEAREST = 3
_PLACES = re.compile(r"\{(text|labels)\}")

Measure = Literal["phones_per_second", "syllables_per_second", "pitch_median", "pitch_range", "energy"]
"""What of `elocute.prosody.measure.Prosody` may decide a label."""
LOGARITHMIC = ("phones_per_second", "syllables_per_second", "pitch_median")
"""Those that are compared by their logarithm: half as fast is as far as twice as fast."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Dimension(_Part):
    """One dimension. `ordered`: the labels stand in their order, so that a near one is less wrong than a far one."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    description: str
    ordered: bool = False
    labels: Annotated[dict[str, str], Field(min_length=2)]
    """Label: what it means."""
    measure: Measure | None = None
    """What of a recording decides the label."""
    bounds: tuple[float, ...] = ()
    """Where one label ends and the next begins, in units of `measure`."""
    rules: dict[str, str] = {}
    """Label: a regular expression that is searched in the text, whatever the case."""

    def label_of(self, value: float, bounds: Collection[float] = ()) -> str:
        """The label of a measured value; `bounds` where the schema has none. A value on a bound is above it."""
        return list(self.labels)[bisect_right(list(self.bounds or bounds), value)]

    @field_validator("labels", mode="before")
    @classmethod
    def _names(cls, labels: Any) -> Any:
        if isinstance(labels, dict):
            for label in labels:
                if not isinstance(label, str) or label != " ".join(label.split()) or not label:
                    raise ValueError(f"expected words with single spaces (quote Yes, No and numbers), got {label!r}")
            if len({label.casefold() for label in labels}) < len(labels):
                raise ValueError("two labels differ in upper and lower case only")
            return {label: meaning or "" for label, meaning in labels.items()}
        return labels

    @model_validator(mode="after")
    def _fits(self) -> "Dimension":
        if self.measure and not self.ordered:
            raise ValueError("measure: only an ordered dimension can be measured; set ordered: true")
        if self.bounds and not self.measure:
            raise ValueError("bounds: of what? set measure")
        if self.bounds and (len(self.bounds) != len(self.labels) - 1 or list(self.bounds) != sorted(set(self.bounds))):
            raise ValueError(f"bounds: expected {len(self.labels) - 1} rising numbers, one between two labels")
        if self.measure in LOGARITHMIC and self.bounds and self.bounds[0] <= 0:
            raise ValueError(f"bounds: expected positive numbers of {self.measure}, got {self.bounds[0]:g}")
        for label, rule in self.rules.items():
            if label not in self.labels:
                raise ValueError(f"rules: {label!r} is no label; nearest: {_nearest(label, self.labels)}")
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"rules: {label}: not a regular expression: {error}") from None
        return self


class Schema(_Part):
    """All dimensions, and the sentence that tells a model text and labels."""

    prompt_template: Annotated[str, Field(alias="prompt")]
    dimensions: Annotated[dict[str, Dimension], Field(min_length=1)]

    @field_validator("prompt_template")
    @classmethod
    def _has_both_places(cls, template: str) -> str:
        if sorted(_PLACES.findall(template)) != ["labels", "text"]:
            raise ValueError("expected {labels} and {text} once each")
        return template

    @field_validator("dimensions", mode="before")
    @classmethod
    def _named(cls, dimensions: Any) -> Any:
        if not isinstance(dimensions, dict):
            return dimensions
        return {
            name: {**values, "name": name} if isinstance(values, dict) else values
            for name, values in dimensions.items()
        }

    @property
    def digest(self) -> str:
        """The sha256 of all it says, 64 hexadecimal digits: comments and layout of the file do not matter."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def check(self, labels: Mapping[str, str]) -> None:
        """InputError unless `labels`, of any of the dimensions, are ones there are; it names the nearest."""
        if not isinstance(labels, Mapping):
            raise InputError(f"labels: expected an object of dimensions and their labels, got {labels!r}")
        problems = [problem for name, label in labels.items() if (problem := self.problem(name, label))]
        if problems:
            raise InputError("; ".join(problems))

    def problem(self, name: str, label: Any) -> str | None:
        """What is wrong with one label, or None."""
        if name not in self.dimensions:
            return f"labels.{name}: no such dimension; nearest: {_nearest(name, self.dimensions)}"
        known = self.dimensions[name].labels
        if not isinstance(label, str):
            return f"labels.{name}: expected a label such as {next(iter(known))}, got {label!r}"
        return None if label in known else f"labels.{name}: no such label: {label!r}; nearest: {_nearest(label, known)}"

    def prompt(self, text: str, labels: Mapping[str, str]) -> str:
        """What a model is told to speak: the template, filled in; without labels the text alone. Checks the labels."""
        self.check(labels)
        if not labels:
            return text
        said = ", ".join(f"{name}: {labels[name]}" for name in self.dimensions if name in labels)
        return _PLACES.sub(lambda place: {"text": text, "labels": said}[place[1]], self.prompt_template)

    def only(self, names: Iterable[str]) -> "Schema":
        """The same with some of the dimensions, in its own order."""
        chosen = set(names)
        return self.model_copy(update={"dimensions": {n: d for n, d in self.dimensions.items() if n in chosen}})

    def description(self) -> str:
        """All dimensions and labels in words, for a model that labels or judges."""
        return "\n\n".join(
            "\n".join([f"{name}: {one.description}", *(f"- {label}: {what}" for label, what in one.labels.items())])
            for name, one in self.dimensions.items()
        )

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of an object with one label for each dimension, in the strict form of structured output."""
        properties = {name: {"type": "string", "enum": list(one.labels)} for name, one in self.dimensions.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def given_labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something: null and "" leave a dimension open, as tables that are turned into rows have them."""
    return {name: label for name, label in labels.items() if label not in (None, "")}


def load_schema(path: str | Path | None = None) -> Schema:
    """The schema of a YAML file, or one that ships: "paper" (None: this one; arXiv 2510.14628) or "rlaif_spa" (its
    released code's whole vocabulary). InputError has one line for each mistake."""
    path = SHIPPED.get(str(path or "paper")) or Path(path)
    try:
        values = read_yaml(path, "the prosody schema")
    except InputError as error:
        if path.exists():
            raise
        raise InputError(f"{error}; {' and '.join(SHIPPED)} ship with elocute") from None
    try:
        return Schema.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_line(path, problem) for problem in error.errors())) from None


def _line(path: Path, problem: Mapping[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"]))
    message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    got = (
        "" if problem["type"] == "value_error" or isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    )
    return f"{path}: {place + ': ' if place else ''}{message[0].lower() + message[1:]}{got}"


def _nearest(word: str, known: Iterable[str]) -> str:
    def unlike(other: str) -> float:
        return -SequenceMatcher(None, str(word).casefold(), other.casefold()).ratio()

    return ", ".join(sorted(known, key=unlike)[:NEAREST])
