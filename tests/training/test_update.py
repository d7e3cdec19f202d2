"""One optimiser step's loss and gradient against a twin that loops over tokens in float64 over the whole vocabulary."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elocute.rollout import sample_groups
from elocute.training import update
from elocute.training.experience import sampling_of
from elocute.training.policy import load_policy
from elocute.training.update import Rows, Update
from tests.training.update_twin import (
    AVAILABLE,
    LAMBDA,
    REWARDS,
    Setting,
    assert_same_gradients,
    chosen,
    make_answers,
    make_recipe,
    sampler_logp,
    token_rows,
    twin,
    twin_metrics,
)

PG, SFT = "objective.policy_gradient", "objective.sft"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"{PG}.scope=all", f"{SFT}.scope=text"],
        [f"{PG}.scope=speech", f"{SFT}.scope=speech"],
        [f"{PG}.normaliser=token", f"{SFT}.normaliser=token", f"{PG}.scope=all"],
        [f"{PG}.normaliser=group", f"{SFT}.normaliser=group", f"{PG}.scope=all"],
        [f"{PG}.scope=all", f"{PG}.text_weight=2", f"{PG}.speech_weight=0.3", f"{SFT}.text_weight=0.2"],
        [f"{PG}.scope=all", f"{PG}.text_weight=0", f"{SFT}.speech_weight=0"],
        [f"{PG}.baseline=leave_one_out"],
        [f"{PG}.baseline=leave_one_out", f"{PG}.scale=none"],
        ["objective.kl.estimator=exact"],
        ["objective.kl.estimator=exact", "rollout.temperature=0.7"],
        ["objective.kl.text=0", f"{PG}.scope=speech"],
        ["objective.kl.text=0", "objective.kl.speech=0"],
        ["rollout.temperature=0.6", "rollout.importance_cap=100"],
        ["rollout.temperature=1.3", "rollout.importance_cap=0.8"],
    ],
    ids=lambda overrides: " ".join(o.removeprefix("objective.") for o in overrides) or "as the recipe says",
)
def test_loss_and_gradient_are_the_twins(tiny_folder, overrides):
    setting = Setting(make_recipe(tiny_folder, *overrides))
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    parts, gradients = twin(setting)
    assert {name for name in totals if name.startswith("loss/")} == parts.keys()
    parts |= twin_metrics(setting)
    assert {name: totals[name] for name in parts} == pytest.approx(parts, rel=1e-5, abs=1e-7)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.mark.parametrize("clip", [0.05, 0.2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_later_updates_on_the_same_rollouts_are_the_twins(tiny_folder, clip, temperature):
    recipe = make_recipe(
        tiny_folder, f"{PG}.clip={clip}", f"{PG}.scope=all", "optim.updates_per_rollout=2",
        f"rollout.temperature={temperature}",
    )  # fmt: skip
    setting = Setting(recipe, old=True)
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    parts, gradients = twin(setting)
    assert 0 < totals["pg/clipped"] < totals["pg/tokens"]
    assert {name: totals[name] for name in parts} == pytest.approx(parts, rel=1e-5, abs=1e-7)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.mark.parametrize("overrides", [[], ["rollout.importance_cap=1.05"], [f"{PG}.clip=0.01"]], ids=" ".join)
def test_answers_that_an_older_policy_sampled_are_the_twins(tiny_folder, overrides):
    """π/π_older weighs the advantage, capped; the clip, around the policy before the first update, is idle."""
    setting = Setting(make_recipe(tiny_folder, f"{PG}.scope=all", *overrides))
    rows = setting.rollouts
    with torch.no_grad():
        older = token_rows(setting.policy.network, rows.prompts, rows.answers, 1.0)
    for row, answer in enumerate(rows.answers):
        rows.sampler_logp[row, : len(answer)] = older[row].gather(1, answer.ids[:, None])[:, 0].float()
    setting.perturb(0.01)
    totals = setting.update(rows, setting.targets, LAMBDA).values
    parts, gradients = twin(setting)
    parts |= twin_metrics(setting)
    assert {name: totals[name] for name in parts} == pytest.approx(parts, rel=1e-5, abs=1e-7)
    assert totals["sampler/mismatch"] > 0 == totals["pg/clipped"]
    assert (totals["sampler/truncated"] > 0) == ("rollout.importance_cap=1.05" in overrides)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.fixture(scope="module")
def whole(tiny_folder) -> tuple[Setting, dict[str, float], dict[str, torch.Tensor]]:
    setting = Setting(make_recipe(tiny_folder, f"{PG}.scope=all"))
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    return setting, totals, setting.gradients()


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(6)), micro_batch=st.integers(1, 6))
def test_padding_and_the_order_of_rows_are_invisible(whole, order, micro_batch):
    setting, totals, gradients = whole
    recipe = setting.recipe.model_copy(
        update={"optim": setting.recipe.optim.model_copy(update={"micro_batch": micro_batch})}
    )
    rows = setting.rollouts
    shuffled = Rows.of([rows.prompts[i] for i in order], [rows.answers[i] for i in order])
    shuffled.leave_out(AVAILABLE.flatten()[order])
    shuffled.advantage, shuffled.sampler_logp = rows.advantage[order], rows.sampler_logp[order]
    update = Update(recipe, setting.policy, setting.reference, setting.update.accelerator)
    assert update(shuffled, setting.targets, LAMBDA).values == pytest.approx(totals, rel=1e-5)
    assert_same_gradients(setting.gradients(), gradients, 1e-5)


def learn(setting: Setting, cells) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradient of one update on (rollout, reward, available) of two groups, without targets."""
    rollouts, *rest = zip(*cells, strict=True)
    rows = setting.rows_of(rollouts, *(torch.tensor(values).view(2, -1) for values in rest))
    if setting.recipe.objective.policy_gradient.clip is not None:
        setting.update.score_before(rows)
    return setting.update(rows, None, LAMBDA).values, setting.gradients()


@pytest.mark.parametrize("normaliser", ["sequence", "token", "group"])
@pytest.mark.parametrize("overrides", [[], ["objective.kl.estimator=exact"], [f"{PG}.clip=0.1"]], ids=" ".join)
def test_an_unavailable_rollout_changes_nothing(tiny_folder, normaliser, overrides):
    """However many a group holds, wherever, whatever they say and whatever number stands in their cell."""
    setting = Setting(make_recipe(tiny_folder, f"{PG}.scope=all", f"{PG}.normaliser={normaliser}", *overrides))
    answers = make_answers(setting.policy.lm.layout, torch.Generator().manual_seed(8))
    cells = list(zip(setting.sampled, REWARDS.flatten().tolist(), [True] * 6, strict=True))
    alone, without = learn(setting, cells)
    place = st.integers(0, 3)

    @settings(max_examples=6)
    @given(st.lists(st.tuples(place, place, st.sampled_from(answers), st.floats(-1e6, 1e6)), min_size=1, max_size=2))
    def check(added):
        groups = [cells[:3], cells[3:]]
        for *places, tokens, reward in added:
            logp = sampler_logp(tokens, torch.Generator().manual_seed(9))
            for group, where in zip(groups, places, strict=True):
                group.insert(where, (replace(group[0][0], tokens=tokens, logprob=logp), reward, False))
        totals, gradients = learn(setting, groups[0] + groups[1])
        assert totals == pytest.approx(alone, rel=1e-5, abs=1e-6)
        assert_same_gradients(gradients, without, 1e-5)

    check()


def test_when_no_judge_answers_only_the_supervised_targets_are_learned(tiny_folder):
    setting = Setting(make_recipe(tiny_folder, f"{PG}.scope=all"))
    rows = setting.rows_of(setting.sampled, REWARDS, torch.zeros(2, 3, dtype=torch.bool))
    totals, ours = setting.update(rows, setting.targets, LAMBDA).values, setting.gradients()
    alone = setting.update(None, setting.targets, LAMBDA).values
    assert_same_gradients(ours, setting.gradients(), 1e-6)
    assert {name: value for name, value in totals.items() if value} == pytest.approx(alone)


@pytest.mark.parametrize("overrides", [["objective.kl.estimator=exact"], [f"{PG}.scope=all"]], ids=" ".join)
def test_passes_for_the_sake_of_other_processes_count_nothing(tiny_folder, monkeypatch, overrides):
    """Others have a micro-batch more of rollouts than this one, and one more of targets."""
    setting = Setting(make_recipe(tiny_folder, *overrides))
    passes, once = [], setting.policy.forward
    monkeypatch.setattr(setting.policy, "forward", lambda *a: passes.append(a) or once(*a))
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    alone, gradients = len(passes), setting.gradients()
    monkeypatch.setattr(update, "most", lambda _accelerator, count: count + 1)
    assert setting.update(setting.rollouts, setting.targets, LAMBDA).values == totals
    assert len(passes) == 2 * alone + 2
    for name, gradient in setting.gradients().items():
        assert torch.equal(gradient, gradients[name]), name


def test_without_anything_to_learn_the_gradient_is_zero(tiny_folder):
    """No text sampled, text in scope only, λ = 1: a loss of 0 with a gradient of 0, not an error."""
    setting = Setting(make_recipe(tiny_folder, "objective.kl.text=0", "objective.kl.speech=0"))
    rows = Rows.of(setting.rollouts.prompts[4:5], setting.rollouts.answers[4:5])
    rows.advantage, rows.sampler_logp = torch.ones(1), torch.full((1, 1), -3.0)
    totals = setting.update(rows, None, 1.0).values
    assert totals["loss/pg"] == 0 and totals["pg/tokens"] == 0
    assert all(bool((gradient == 0).all()) for gradient in setting.gradients().values())


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.5), (5, 0.6)], ids=["plain", "top-k", "top-p", "both"]
)
def test_defect_08_a_truncating_sampler_is_corrected_and_its_mismatch_measured(speaking_lm, tmp_path, top_k, top_p):
    """π/π_sampler is the probability mass that top-k and top-p kept: it weighs the token, its log is the metric."""
    speaking_lm.save(tmp_path)
    off = ["objective.kl.text=0", "objective.kl.speech=0", f"{PG}.scope=all", "rollout.temperature=0.8"]
    recipe = make_recipe(tmp_path, *off, f"rollout.top_k={top_k}", f"rollout.top_p={top_p}")
    policy = load_policy(recipe)
    prompts = [torch.tensor([30, 31, 32])]
    rollouts = sample_groups(policy.lm, prompts, [[1, 2, 3, 4]], sampling_of(recipe))[0]
    rows = Rows.of([r.prompt for r in rollouts], [r.tokens for r in rollouts])
    rows.advantage = torch.ones(len(rollouts))
    rows.sampler_logp = torch.nn.utils.rnn.pad_sequence([r.logprob for r in rollouts], batch_first=True)
    totals = Update(recipe, policy, None, Accelerator(cpu=True))(rows, None, 1.0).values
    kept = []
    with torch.no_grad():
        for row, answer in zip(token_rows(policy.network, rows.prompts, rows.answers, 0.8), rows.answers, strict=True):
            kept.append([kept_mass(row[t].exp(), top_k, top_p) for t in chosen(answer, "all")])
    mismatch = totals["sampler/mismatch"] / totals["pg/tokens"]
    everything = [mass for masses in kept for mass in masses]
    assert mismatch == pytest.approx(-sum(math.log(mass) for mass in everything) / len(everything), abs=1e-5)
    assert (mismatch > 0.1) == (top_k > 0 or top_p < 1)
    expected = -sum(sum(masses) / len(masses) for masses in kept) / len(kept)
    assert totals["loss/pg"] == pytest.approx(expected, rel=1e-4)


def kept_mass(probabilities: torch.Tensor, top_k: int, top_p: float) -> float:
    """The most likely tokens, at most top_k of them, and of those only until their share has reached top_p."""
    ordered = sorted(probabilities.tolist(), reverse=True)[: top_k or None]
    kept: list[float] = []
    while len(kept) < len(ordered) and sum(kept) < top_p * sum(ordered):
        kept.append(ordered[len(kept)])
    return sum(kept)
