"""The recipe's schema. Unknown keys, bad types and wrong ranges are errors; every field says what it means."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from elocute.recipe.ears import EarSpec, PocketSphinxSpec
from elocute.recipe.rewards import LabelListenerSpec, RewardSpec, deciding, same_judge
from elocute.recipe.rollout import Rollout
from elocute.recipe.rounds import Rounds
from elocute.recipe.section import Positive, Section, Weight
from elocute.recipe.temperature import Temperature

Beta = Annotated[float, Field(ge=0, lt=1)]
Scope = Literal["all", "text", "speech"]


class Data(Section):
    """JSONL rows. `eval` and `dev` are held out: never trained."""

    train: Path
    """Rows to train on, see docs/own-data.md."""
    eval: Path | None = None
    """Rows with an `answer` column, or of a TTS model texts to read; evaluated before and after; null: not at all."""
    dev: Path | None = None
    """Rows with a chosen and a rejected answer, measured at checkpoints: the best becomes `model/` (docs/losses.md)."""
    cache: Path | None = None
    """Folder of encoded audio; default $ELOCUTE_CACHE/units, else ~/.cache/elocute/units."""
    prompt_seconds: Annotated[float, Field(gt=0)] | None = None
    """Prompts are the first n seconds of their sound files, cut before they are encoded; null: whole files."""


class RewardMix(Section):
    """How the rewards of an answer become one number."""

    scale: Literal["raw", "group"] = "raw"
    """`raw`: Σ weight·value; `group`: each reward standardised within its group first."""
    invalid_penalty: float | None = None
    """What an invalid sample scores; default: the lowest possible reward."""
    max_unavailable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A step with a larger share of unavailable judgements stops the run."""


class Adaptive(Section):
    """λ = λ_max · reward gate · information gate, smoothed (WavAlign, arXiv 2604.14932, adaptive mixing)."""

    kind: Literal["adaptive"] = "adaptive"
    lambda_max: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Highest λ."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the previous λ in the next one, by optimiser step; 0: no smoothing."""
    sharpness: Annotated[float, Field(gt=0)] = 5.0
    """Of the reward gate, on the paper's 1–5 scale."""


class Fixed(Section):
    """A constant λ: 0 is SFT only (nothing is sampled), 1 is RL without an anchor."""

    kind: Literal["fixed"] = "fixed"
    value: Annotated[float, Field(ge=0, le=1)]
    """λ."""


class PolicyGradient(Section):
    scope: Scope = "text"
    """Tokens that the policy gradient trains."""
    text_weight: Weight = 1.0
    """Weight of text tokens; not part of the normaliser."""
    speech_weight: Weight = 1.0
    """Weight of speech units; not part of the normaliser."""
    normaliser: Literal["sequence", "token", "group"] = "sequence"
    """What a sum over tokens is divided by, see docs/losses.md."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted from a reward: the group's mean, or that of its other answers."""
    scale: Literal["std", "none"] = "std"
    """Divide advantages by the group's standard deviation, or do not."""
    blame: Annotated[float, Field(gt=0)] | None = None
    """Of an answer that a unit of the wrong kind broke: that unit alone gets its advantage, so many times over."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """PPO clip range ε; without it the ratio is not clipped (it is 1 with one update a rollout)."""


class Sft(Section):
    scope: Scope = "all"
    """Tokens that the supervised loss trains."""
    text_weight: Weight = 1.0
    """Weight of text tokens; not part of the normaliser."""
    speech_weight: Weight = 1.0
    """Weight of speech units; not part of the normaliser."""
    normaliser: Literal["sequence", "token", "group"] = "sequence"
    """What a sum over tokens is divided by, see docs/losses.md."""


class Kl(Section):
    """Weights of KL(policy ‖ reference) on sampled tokens, by modality; 0 turns that part off."""

    text: Weight = 0.0
    """β of text tokens."""
    speech: Weight = 0.0
    """β of speech units."""
    estimator: Literal["k3", "exact"] = "k3"
    """`k3`: from the sampled tokens' log-probs; `exact`: over the whole vocabulary."""


class Hybrid(Section):
    """(1−λ)·SFT + λ·policy gradient + β_text·KL_text + β_speech·KL_speech."""

    kind: Literal["hybrid"] = "hybrid"
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
    def judges(self) -> bool:
        """Whether rewards score the rollouts."""
        return self.samples

    @property
    def uses_reference(self) -> bool:
        return bool(self.kl.text or self.kl.speech)

    @property
    def exact_kl(self) -> bool:
        return self.uses_reference and self.kl.estimator == "exact"


class Anchor(Sft):
    """The supervised loss on the pairs' chosen answers, beside the preference loss."""

    weight: Weight = 0.0
    """Of this part; 0: none."""


class Dpo(Section):
    """Direct preference optimisation and its relatives: preference loss + sft.weight·SFT on the chosen answers."""

    kind: Literal["dpo"]
    mode: Literal["offline", "online", "auto", "best_worst"] = "offline"
    """What is preferred to what. `offline`: the row's answer to learn to its rejected one; `online`: the row's answer
    to learn to one fresh sample; `auto`: by row, offline if it has a rejected answer, else online; `best_worst`: of
    `rollout.group_size` fresh samples the one with the highest reward to the one with the lowest."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """β: how dear it is to leave the reference."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """`sigmoid`: DPO's; `ipo`; `hinge`: SLiC's."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be wrong (conservative DPO); for `sigmoid` only."""
    scope: Scope = "text"
    """Tokens whose log-probs are compared."""
    text_weight: Weight = 1.0
    """Weight of text tokens; not part of the length."""
    speech_weight: Weight = 1.0
    """Weight of speech units; not part of the length."""
    length_normalised: bool = False
    """Divide an answer's log-prob by its number of tokens in scope; `ipo` always does."""
    pair_weight: str | None = None
    """In mode `offline`: column with the weight of the row's pair, a number from 0 up (for example `score_gap`);
    null: 1."""
    sft: Anchor = Anchor()
    min_gap: Weight = 0.0
    """In mode `best_worst`: least difference of the rewards of best and worst."""
    reference: Literal["model", "cached"] = "model"
    """`model`: with LoRA the model with its adapter off, else a frozen copy; `cached`, in mode `offline`: its
    log-probs, computed once and kept on disk, so that no copy stays in memory."""
    reference_cache: Path | None = None
    """Folder of these log-probs; default $ELOCUTE_CACHE/reference, else ~/.cache/elocute/reference."""

    @model_validator(mode="after")
    def _consistent(self) -> "Dpo":
        offline, best_worst = self.mode == "offline", self.mode == "best_worst"
        for key, wrong, only in [
            ("label_smoothing", self.label_smoothing and self.loss != "sigmoid", "loss: sigmoid"),
            ("pair_weight", self.pair_weight is not None and not offline, "mode: offline"),
            ("min_gap", self.min_gap and not best_worst, "mode: best_worst"),
            ("reference: cached", self.reference == "cached" and not offline, "mode: offline"),
        ]:
            if wrong:
                raise ValueError(f"{key}: only with {only}")
        if not any(self.weights):
            raise ValueError(
                f"text_weight, speech_weight: expected one above 0 in scope {self.scope}: nothing is trained"
            )
        return self

    @property
    def samples(self) -> bool:
        """Whether answers are sampled."""
        return self.mode != "offline"

    @property
    def judges(self) -> bool:
        """Whether rewards score them."""
        return self.mode == "best_worst"

    @property
    def uses_reference(self) -> bool:
        """Whether the reference stays in memory."""
        return self.reference == "model"

    exact_kl: ClassVar[bool] = False

    @property
    def weights(self) -> tuple[float, float]:
        """Of text tokens and speech units; 0 outside the scope."""
        return self.text_weight * (self.scope != "speech"), self.speech_weight * (self.scope != "text")

    @property
    def by_length(self) -> bool:
        return self.length_normalised or self.loss == "ipo"


def _hybrid_by_default(values):
    return {"kind": "hybrid", **values} if isinstance(values, dict) else values


Objective = Annotated[Hybrid | Dpo, Field(discriminator="kind"), BeforeValidator(_hybrid_by_default)]


class Lora(Section):
    """Train low-rank adapters, by default RLAIF-SPA's; the reference is the same model with the adapter off."""

    rank: Positive = 8
    """Rank of the adapters."""
    alpha: Positive = 32
    """Their scale is alpha / rank."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    """Names of the linear layers that get one."""


class Optim(Section):
    lr: Annotated[float, Field(gt=0)]
    """Highest learning rate of AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: Weight = 0.01
    """AdamW's."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 1.2
    """Largest gradient norm; inf: any."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """From the warm-up's end to `steps`: level, or falling to 0."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    updates_per_rollout: Positive = 1
    """Optimiser steps on the same rollouts or pairs; above 1, `hybrid` needs `policy_gradient.clip`."""
    micro_batch: Positive = 16
    """Rows of one forward pass at most; of the result only rounding depends on it."""


class Checkpoint(Section):
    every: Positive = 20
    """Steps between checkpoints; there is one at the end and at Ctrl-C too."""
    keep: Positive = 2
    """How many are kept, the newest, besides the best by `data.dev`."""


class Evaluation(Section):
    """Before and after training, on `data.eval`, with a recogniser that is no reward."""

    rows: Positive | None = None
    """The first n rows of data.eval; default all."""
    temperature: Temperature | None = None
    """Of sampling in the evaluation; one, or one for each of the model's heads; null: its own, mostly 0.7."""
    batch: Positive = 64
    """Questions answered, or texts read, at a time; the result does not depend on it."""
    ear: EarSpec = PocketSphinxSpec(kind="pocketsphinx")
    """The recogniser that listens; no reward may use it too."""
    labels: list[LabelListenerSpec] = []
    """Of TTS models: who says which labels were heard, each dimension by one; see docs/own-tts-model.md."""


class Recipe(Section):
    """One run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything drawn at random: a draw's seed is a function of it, the step, the prompt and the sample."""
    run_dir: Path
    """The run's folder; a new run needs it empty or absent."""
    steps: Positive
    """Steps of the run: one rollout of `prompts_per_step` × `group_size` answers each, or `prompts_per_step` pairs."""
    model: Path
    """Folder of the model to train, see docs/own-model.md."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; weights that are trained, log-probs and statistics are float32 either way."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, slower; of the result only rounding changes."""
    memory_check: bool = True
    """Refuse to start what will not fit into memory, see docs/performance.md; false: start it all the same."""
    data: Data
    rollout: Rollout = Rollout()
    rewards: list[RewardSpec] = []
    reward_mix: RewardMix = RewardMix()
    listen: EarSpec | None = None
    """For models that speak and do not write: the recogniser that writes down what was said, prompts without
    `question_text` too, before rewards read it."""
    objective: Objective = Hybrid()
    rounds: Rounds | None = None
    """For `elocute rounds` only."""
    lora: Lora | None = None
    freeze: list[re.Pattern[str]] = []
    """Regular expressions: parameters whose name one of them finds are not trained, for example `embed_tokens`."""
    optim: Optim
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where metrics go besides metrics.jsonl."""
    samples_every: Positive = 10
    """Write the rollouts of one prompt to samples/ every n steps."""
    report: bool = True
    """Write `report.html` at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.objective.judges and not self.rewards:
            raise ValueError("rewards: expected at least one, the objective samples answers and must score them")
        if self.rollout.off_policy_steps and not self.objective.judges:
            raise ValueError("rollout.off_policy_steps: expected 0, no reward is waited for with this objective")
        if isinstance(self.objective, Hybrid):
            self._consistent_hybrid(self.objective)
        if self.data.eval:
            self._evaluated_by_another()
        for reward in self.rewards:
            for credit in ("word_credit", "unit_credit"):
                if getattr(reward, credit, None) and not self._trains_speech:
                    raise ValueError(
                        f"rewards: {reward.name}: {credit}: expected a policy gradient whose scope is speech or all"
                    )
        if self.lora and self.freeze:
            raise ValueError("freeze: lora trains its adapters only; choose lora.targets instead")
        return self

    @property
    def _trains_speech(self) -> bool:
        objective = self.objective
        return isinstance(objective, Hybrid) and objective.samples and objective.policy_gradient.scope != "text"

    def _evaluated_by_another(self) -> None:
        said, ear = self.model_dump(mode="json", include={"rewards", "listen"}), self.evaluation.ear.model_dump()
        for name, entry in deciding(said["rewards"], said["listen"]).items():
            if same_judge(entry, ear):
                raise ValueError(f"evaluation.ear: {name!r} is the same and decides the run; choose another")

    def _consistent_hybrid(self, objective: Hybrid) -> None:
        if isinstance(objective.mixing, Adaptive) and self.reward_mix.scale == "group":
            raise ValueError("objective.mixing: adaptive needs a reward scale with a range; use reward_mix.scale=raw")
        if self.optim.updates_per_rollout > 1 and objective.policy_gradient.clip is None:
            raise ValueError("objective.policy_gradient.clip: expected with optim.updates_per_rollout above 1")
        if self.data.dev:
            raise ValueError("data.dev: preferences are measured with objective.kind: dpo only")
