"""The variants of WavAlign's table (arXiv 2604.14932): which tokens, which mix, as changes to recipe.yaml."""

NO_KL = ["objective.kl.text=0", "objective.kl.speech=0"]
ALL_TOKENS = ["objective.policy_gradient.scope=all"]


def fixed(share: float) -> list[str]:
    """λ = share, whatever the rewards."""
    return [f"objective.mixing={{kind: fixed, value: {share}}}"]


VARIANTS = {
    "sft_only": [*fixed(0), *NO_KL],
    "all_fixed_50_50": [*ALL_TOKENS, *fixed(0.5)],
    "all_adaptive_ema": ALL_TOKENS,
    "text_rl_only": fixed(1),
    "text_fixed_50_50": fixed(0.5),
    "text_fixed_70_30": fixed(0.7),
    "text_adaptive": ["objective.mixing.ema=0"],
    "text_adaptive_ema": [],
}

LABELS = {
    "base": "base model",
    "sft_only": "SFT only",
    "all_fixed_50_50": "RL on all tokens, fixed .5/.5",
    "all_adaptive_ema": "RL on all tokens, adaptive",
    "text_rl_only": "RL on text, no anchor",
    "text_fixed_50_50": "RL on text, fixed .5/.5",
    "text_fixed_70_30": "RL on text, fixed .7/.3",
    "text_adaptive": "RL on text, adaptive, no EMA",
    "text_adaptive_ema": "RL on text, adaptive + EMA (WavAlign)",
}

OURS = "text_adaptive_ema"
NOISY = ["all_fixed_50_50", "text_fixed_50_50", "text_adaptive_ema"]
"""Variants that are also trained with a judge that is wrong at a known rate (percent)."""
NOISE = [15, 30]
RATES = ["1e-4", "3e-4", "1e-3"]
"""Learning rates each variant is tried with, on one seed and other held-out items than the table's."""


def noisy_judge(percent: int) -> list[str]:
    """The override that makes the judge wrong `percent` of the time."""
    function = f"benchmarks/wavalign_ablation/judge.py:heard_right_{percent}"
    return [f"rewards=[{{kind: function, name: heard_right, function: '{function}', low: 0, high: 1}}]"]
