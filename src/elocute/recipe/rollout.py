"""What a recipe says of rollouts: how answers are sampled, and by whom."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from elocute.recipe.section import Positive, Section
from elocute.recipe.temperature import Temperature


class Vllm(Section):
    """Answers are sampled by a vLLM server, which loads the policy's weights before every step, see
    [vllm.md](vllm.md)."""

    url: Annotated[str, Field(pattern=r"^https?://[^@/]+$")]
    """Where it listens, for example http://127.0.0.1:8000."""
    weights: Path | None = None
    """Folder of this run's own for the newest weights, which the server reads under the same path, for example below
    /dev/shm; default: `weights` in the run's folder."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds in which an answer must come, and in which a server that is gone must be back; then the run stops."""
    max_drift: Annotated[float, Field(gt=0)] = 0.1
    """Mean distance of the server's log-probs from the model's own, in nats a token, above which the run stops."""


class Rollout(Section):
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers a prompt, G."""
    prompts_per_step: Positive = 4
    """Prompts a step, P, over all processes: a multiple of their number."""
    max_new_tokens: Positive = 1024
    """An answer without an end by then is broken."""
    temperature: Temperature = 1.0
    """Of sampling, and of the log-probs of policy gradient and KL; one, or one for each head (docs/models.md)."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the k likeliest tokens; 0: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Then from the likeliest tokens that hold this share; 1: all."""
    importance_cap: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 2.0
    """Cap of the truncated importance weight that corrects top-k/top-p and stale samplers."""
    off_policy_steps: Annotated[int, Field(ge=0, le=1)] = 0
    """1: while the rewards judge a step's answers, the next step's are sampled, by the policy before this step's
    update, see docs/losses.md; 0: one after the other."""
    vllm: Vllm | None = None
