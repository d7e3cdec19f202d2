"""What a recipe says about rounds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from elocute.recipe.section import Positive, Section


class Rounds(Section):
    """Align-SLM's loop (arXiv 2411.01834): sample, score, pair, DPO, then again from the newest policy, bar raised."""

    count: Positive = 2
    """Rounds at most; the loop ends early when a round does not raise the accuracy on its held-out pairs."""
    candidates: Annotated[int, Field(ge=2)] = 5
    """Continuations a prompt."""
    rule: Literal["threshold", "rank", "best_worst"] = "threshold"
    """How pairs are made of them, see docs/preference-data.md."""
    thresholds: list[tuple[float, float]] = [(3, 1), (4, 2)]
    """For `threshold`: each round's least score of a chosen and largest score of a rejected answer."""
    max_auto_bleu: Annotated[float, Field(ge=0, le=1)] = 0.1
    """An answer that repeats itself more is never the chosen one; by `threshold` it is rejected whatever its score."""
    pairs_per_prompt: Positive = 1
    """At most so many pairs a prompt, the widest."""
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts whose pairs are held out; by them each round's best checkpoint is chosen."""

    @model_validator(mode="after")
    def _enough(self) -> "Rounds":
        if self.rule == "threshold" and len(self.thresholds) < self.count:
            raise ValueError(f"thresholds: expected one pair a round, {self.count}, got {len(self.thresholds)}")
        if any(chosen <= rejected for chosen, rejected in self.thresholds):
            raise ValueError("thresholds: expected the chosen's above the rejected's: no answer may be both")
        return self
