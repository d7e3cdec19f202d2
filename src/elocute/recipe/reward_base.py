"""What every reward of a recipe has: a name, a weight, a gate, units of its own."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from elocute.recipe.ears import Spec

_STATISTICS = ("mean", "std", "max")  # of the combined reward, beside which a reward's own mean stands in the metrics


class GateSpec(Spec):
    """The gated reward counts only where `reward` is at least `at_least`; elsewhere it contributes its lowest value."""

    reward: str
    """Name of another reward."""
    at_least: float
    """Its least value at which this one counts."""


class UnitCredit(Spec):
    """The reward's own advantage, for some of the codec's units only: those that carry what it hears."""

    units: str
    """A part of the codec's units; the starter codec's are `prosody` and `spectral`."""
    first: Annotated[int, Field(ge=1)] | None = None
    """Only so many of them, from the answer's beginning: where it settles how it will sound; default: all."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of that advantage, beside the one that all tokens have from the sum of the rewards."""


class RewardBase(Spec):
    """A reward's name, and how it counts."""

    kind: str
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = ""
    """How metrics and gates call it; default: its kind."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """In the sum of the rewards. 0: measured, and used by gates and credits, without counting there."""
    gate: GateSpec | None = None
    unit_credit: UnitCredit | None = None

    @property
    def credited(self) -> bool:
        """Whether some tokens have its own advantage."""
        return bool(self.unit_credit or getattr(self, "word_credit", 0))

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
