"""The audit's judges cannot help, each in its own way; the variants are recipes."""

import numpy as np
import pytest

from benchmarks.rlaif_spa import judges
from benchmarks.rlaif_spa.__main__ import AUDIT, RECIPE, VARIANTS
from benchmarks.rlaif_spa.results import METRICS, markdown
from benchmarks.rlaif_spa.results import VARIANTS as NAMED
from elocute.recipe import load_recipe
from elocute.rewards.combine import build_mixer

RATE = 16_000
LABELS = [{"emotion": "Happy", "speed": "Fast"}, {"emotion": "Sad", "speed": "Slow"}]


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def voice(hertz: float, seconds: float, gain: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (gain * sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 9))).astype(np.float32)


def test_a_constant_judge_says_the_same():
    assert judges.constant([[], []]) == [1.0, 1.0]


def test_a_judge_of_transcripts_tells_prompts_apart_and_never_a_groups_answers():
    prompts = [asked("The door is near the bank."), asked("The box is near the bank.")]
    one, two = judges.transcript_only(prompts, LABELS[:1] * 2)
    assert one != two and judges.transcript_only(prompts[:1] * 4, LABELS[:1] * 4) == [one] * 4
    assert judges.transcript_only(prompts[:1], LABELS[1:]) != [one]


def test_permuted_rewards_are_the_true_ones_at_other_answers():
    waveforms = [voice(90 + 20 * n, 1.2 + 0.2 * n, 0.02 * (n + 1)) for n in range(6)]
    prompts, labels = [asked("The mother painted the basket.")] * 6, LABELS * 3
    true = [judges._closeness(w, RATE, p[-1]["content"], asked_for)
            for w, p, asked_for in zip(waveforms, prompts, labels, strict=True)]  # fmt: skip
    got = judges.permuted(prompts, labels, waveforms, [RATE] * 6)
    assert got != true and sorted(got) == sorted(true)
    assert got == judges.permuted(prompts, labels, waveforms, [RATE] * 6)
    silent = judges.permuted(prompts[:1], labels[:1], [np.zeros(RATE, np.float32)], [RATE])
    assert silent == [0.0]


@pytest.mark.parametrize("variant", [*VARIANTS, *AUDIT])
def test_every_variant_is_a_recipe(variant):
    assert variant in NAMED
    changed = ["model=starter/model", "data.eval=null", "steps=3", "seed=2", "run_dir=runs/x"]  # any folder will do
    recipe = load_recipe(RECIPE, [*(VARIANTS | AUDIT)[variant], *changed])
    assert recipe.rewards[-1].kind == "guard"
    assert (recipe.reward_mix.scale == "raw") == (variant == "paper")
    assert (recipe.objective.policy_gradient.blame is None) == (variant not in ("gated_unit_credit", "recipe"))
    build_mixer(recipe.rewards, recipe.reward_mix).close()


def test_the_table_has_a_line_a_variant():
    found = {"mean": 0.2, "ci95": 0.01, "per_seed": [0.2, 0.2]}
    variants = {name: dict.fromkeys(METRICS, found) | {"seeds": [1, 2]} for name in NAMED}
    lines = markdown({"command": "x", "steps": 3, "variants": variants}).splitlines()
    assert lines[4].startswith("| base model | 2 | 20.0 ± 1.0 | 20.0 ± 1.0, 20.0 ± 1.0 | 0.2 ± 0.0 | 20.0 ± 1.0 |")
    assert len(lines) == 4 + len(NAMED)
