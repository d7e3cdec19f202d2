"""The recipe's schema. Unknown keys, bad types and wrong ranges are errors; every field says what it means."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from elocute.recipe.rewards import RewardSpec

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Scope = Literal["all", "text", "speech"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """JSONL rows. `eval` is held out: evaluated before and after, never trained."""

    train: Path
    eval: Path | None = None
    cache: Path | None = None
    """Folder of encoded audio; default $ELOCUTE_CACHE, else ~/.cache/elocute/units."""


class Rollout(Section):
    group_size: Annotated[int, Field(ge=2)] = 8
    prompts_per_step: Positive = 4
    max_new_tokens: Positive = 1024
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Cap of the truncated importance weight that corrects top-k/top-p and stale samplers."""


class RewardMix(Section):
    """How the rewards of an answer become one number."""

    scale: Literal["raw", "group"] = "raw"
    invalid_penalty: float | None = None
    """What an invalid sample scores; default: the lowest possible reward."""
    max_unavailable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A step with a larger share of unavailable judgements stops the run."""


class Adaptive(Section):
    """λ = λ_max · reward gate · information gate, smoothed (WavAlign, eq. for adaptive mixing)."""

    kind: Literal["adaptive"] = "adaptive"
    lambda_max: Annotated[float, Field(ge=0, le=1)] = 0.8
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    sharpness: Annotated[float, Field(gt=0)] = 5.0


class Fixed(Section):
    """A constant λ: 0 is SFT only (nothing is sampled), 1 is RL without an anchor."""

    kind: Literal["fixed"] = "fixed"
    value: Annotated[float, Field(ge=0, le=1)]


class PolicyGradient(Section):
    scope: Scope = "text"
    text_weight: Weight = 1.0
    speech_weight: Weight = 1.0
    normaliser: Literal["sequence", "token", "group"] = "sequence"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none"] = "std"
    clip: Annotated[float, Field(gt=0)] | None = None
    """PPO clip range ε; without it the ratio is not clipped (it is 1 with one update a rollout)."""


class Sft(Section):
    scope: Scope = "all"
    text_weight: Weight = 1.0
    speech_weight: Weight = 1.0
    normaliser: Literal["sequence", "token", "group"] = "sequence"


class Kl(Section):
    """Weights of KL(policy ‖ reference) on sampled tokens, by modality; 0 turns that part off."""

    text: Weight = 0.0
    speech: Weight = 0.0
    estimator: Literal["k3", "exact"] = "k3"


class Objective(Section):
    """(1−λ)·SFT + λ·policy gradient + β_text·KL_text + β_speech·KL_speech."""

    mixing: Annotated[Adaptive | Fixed, Field(discriminator="kind")] = Adaptive()
    policy_gradient: PolicyGradient = PolicyGradient()
    sft: Sft = Sft()
    kl: Kl = Kl()

    @property
    def samples(self) -> bool:
        """Whether this objective needs rollouts at all."""
        sft_only = isinstance(self.mixing, Fixed) and self.mixing.value == 0
        return not sft_only or self.uses_reference

    @property
    def uses_reference(self) -> bool:
        return bool(self.kl.text or self.kl.speech)


class Lora(Section):
    """Train low-rank adapters; the reference is the same model with the adapter off."""

    rank: Positive = 16
    alpha: Positive = 32
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Optim(Section):
    lr: Annotated[float, Field(gt=0)]
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Weight = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.2
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    updates_per_rollout: Positive = 1
    micro_batch: Positive = 16
    """Rows of one forward pass; the result does not depend on it."""


class Checkpoint(Section):
    every: Positive = 20
    keep: Positive = 2


class Evaluation(Section):
    """Before and after training, on `data.eval`, with a recogniser that is no reward."""

    rows: Positive | None = None
    """The first n rows of data.eval; default all."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    batch: Positive = 64
    vocabulary: Path | None = None
    """A file with the words the ear may hear (closed domains); default: open vocabulary."""


class Recipe(Section):
    """One run."""

    seed: Annotated[int, Field(ge=0)] = 0
    run_dir: Path
    steps: Positive
    model: Path
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    data: Data
    rollout: Rollout = Rollout()
    rewards: list[RewardSpec] = []
    reward_mix: RewardMix = RewardMix()
    objective: Objective = Objective()
    lora: Lora | None = None
    freeze: list[re.Pattern[str]] = []
    """Regular expressions: parameters whose name one of them finds are not trained, for example `embed_tokens`."""
    optim: Optim
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    samples_every: Positive = 10
    """Write the rollouts of one prompt to samples/ every n steps."""
    report: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.objective.samples and not self.rewards:
            raise ValueError("rewards: expected at least one, the objective samples answers and must score them")
        if isinstance(self.objective.mixing, Adaptive) and self.reward_mix.scale == "group":
            raise ValueError("objective.mixing: adaptive needs a reward scale with a range; use reward_mix.scale=raw")
        if self.lora and self.freeze:
            raise ValueError("freeze: lora trains its adapters only; choose lora.targets instead")
        if self.optim.updates_per_rollout > 1 and self.objective.policy_gradient.clip is None:
            raise ValueError("objective.policy_gradient.clip: expected with optim.updates_per_rollout above 1")
        return self
