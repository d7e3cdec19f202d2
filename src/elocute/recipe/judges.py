"""Judges alone, for `elocute score`: judging needs neither a model to train nor data to train it on."""

from typing import Annotated, ClassVar

from pydantic import Field

from elocute.recipe.ears import EarSpec
from elocute.recipe.rewards import RewardSpec
from elocute.recipe.schema import RewardMix, Rollout
from elocute.recipe.section import Section


class Judged(Section):
    prompt_seconds: Annotated[float, Field(gt=0)] | None = None
    """Prompts are the first n seconds of their sound files; null: whole files."""


class Judges(Section):
    """What a recipe says about rewards and nothing else; its keys mean what they mean there."""

    rewards: Annotated[list[RewardSpec], Field(min_length=1)]
    reward_mix: RewardMix = RewardMix()
    listen: EarSpec | None = None
    data: Judged = Judged()
    rollout: ClassVar[Rollout] = Rollout()
