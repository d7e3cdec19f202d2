"""One optimiser step's loss and gradient against a twin that loops over tokens in float64 over the whole vocabulary."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elocute.models.layout import Tokens
from elocute.recipe import Recipe, load_recipe
from elocute.rollout import Rollout, sample_groups
from elocute.training import update
from elocute.training.experience import Experience, sampling_of
from elocute.training.policy import Reference, load_policy
from elocute.training.trainer import Trainer
from elocute.training.update import Rows, Update

LAMBDA = 0.3
REWARDS = torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.5, 0.0]], dtype=torch.float64)
AVAILABLE = torch.tensor([[True, True, False], [True, True, True]])  # the one no judge judged is the longest


@pytest.fixture(scope="module")
def model_folder(tiny_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_lm.save(folder)
    return folder


def make_recipe(model: Path, *overrides: str) -> Recipe:
    # Weights far above anything sensible, so that no component hides behind another.
    base = [f"model={model}", "run_dir=unused", "data.eval=null", "optim.micro_batch=4"]
    kl = ["objective.kl.text=0.7", "objective.kl.speech=0.4"]
    return load_recipe("recipes/starter/wavalign.yaml", [*base, *kl, *overrides])


def make_answers(layout, draw: torch.Generator) -> list[Tokens]:
    """Six answers: of several lengths, one cut before its end, one without any text."""

    def numbers(count, low, high):
        return torch.randint(low, high, (count,), generator=draw).tolist()

    whole = [layout.assemble(numbers(t, 30, 280), numbers(s, 0, layout.n_units)) for t, s in [(3, 14), (1, 3), (5, 31)]]
    long = layout.assemble(numbers(2, 30, 280), numbers(12, 0, layout.n_units))
    cut = Tokens(long.ids[:5], long.text[:5], long.action[:5])
    speech = Tokens(torch.tensor([layout.first_unit + 3]), torch.tensor([False]), torch.tensor([True]))
    return [*whole, cut, speech, layout.assemble(numbers(2, 30, 280), numbers(11, 0, layout.n_units))]


def sampler_logp(tokens: Tokens, draw: torch.Generator) -> torch.Tensor:
    """What a sampler may have said: near a uniform distribution, so that some ratios are above the cap."""
    said = -6.8 + 0.8 * torch.randn(len(tokens), generator=draw)
    return torch.where(tokens.action, said, 0.0)


class Setting:
    """A perturbed policy, its reference, and rows of differing lengths. `rollouts` and `targets` go into Update."""

    def __init__(self, recipe: Recipe, *, old: bool = False):
        draw = torch.Generator().manual_seed(3)
        self.recipe = recipe
        self.policy = load_policy(recipe)
        self.reference = Reference(recipe, self.policy) if recipe.objective.uses_reference else None
        layout = self.policy.lm.layout
        prompts = [torch.randint(30, 280, (n,), generator=draw) for n in (4, 9)]
        self.perturb(0.02)
        self.sampled = [
            Rollout(prompts[row // 3], tokens, sampler_logp(tokens, draw), torch.zeros(0), None, False, row)
            for row, tokens in enumerate(make_answers(layout, draw))
        ]
        self.rollouts = self.rows_of(self.sampled, REWARDS, AVAILABLE)
        self.targets = Rows.of(prompts, [make_answers(layout, draw)[0], make_answers(layout, draw)[1]])
        self.update = Update(recipe, self.policy, self.reference, Accelerator(cpu=True))
        self.old_network = copy.deepcopy(self.policy.network)
        if old:
            self.update.score_before(self.rollouts)
            self.perturb(0.06)

    def perturb(self, size: float) -> None:
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += size * torch.randn(parameter.shape, generator=draw)

    def rows_of(self, rollouts: list[Rollout], rewards: torch.Tensor, available: torch.Tensor) -> Rows:
        """rollouts [P·G], rewards and available [P, G]."""
        experience = Experience(rollouts, [], None, rewards, available, slice(0, len(rewards)))
        return Trainer.rollout_rows(self, experience)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {name: parameter.grad.clone() for name, parameter in self.policy.network.named_parameters()}
        self.policy.zero_grad()
        return found


# the twin


def token_rows(network, prompts, answers, temperature: float) -> list[torch.Tensor]:
    """One row at a time: the full log-softmax in float64 at every answer token, [T, V]."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = network(input_ids=torch.cat([prompt, answer.ids])[None]).logits[0].double() / temperature
        found.append(torch.log_softmax(logits, -1)[len(prompt) - 1 : -1])
    return found


def normalised(rows: list[list[torch.Tensor]], normaliser: str) -> torch.Tensor:
    """rows: each row's losses of the tokens in scope."""
    total = torch.zeros((), dtype=torch.float64)
    for losses in rows:
        for loss in losses:
            if normaliser == "sequence":
                total = total + loss / len(losses) / len(rows)
            elif normaliser == "token":
                total = total + loss / sum(map(len, rows))
            else:
                total = total + loss / len(rows)
    return total


def judged(answers: list[Tokens]) -> list[tuple[int, Tokens]]:
    """The rollouts that were judged, with their places: the only ones that stand in any sum or denominator."""
    return [(row, answers[row]) for row, there in enumerate(AVAILABLE.flatten().tolist()) if there]


def chosen(answer: Tokens, scope: str) -> list[int]:
    text = {"all": (True, False), "text": (True,), "speech": (False,)}[scope]
    return [t for t in range(len(answer)) if bool(answer.action[t]) and bool(answer.text[t]) in text]


def naive_advantages(baseline: str, scale: str) -> list[float]:
    result = []
    for rewards, available in zip(REWARDS.tolist(), AVAILABLE.tolist(), strict=True):
        known = [r for r, there in zip(rewards, available, strict=True) if there]
        mean = sum(known) / len(known)
        std = (sum((r - mean) ** 2 for r in known) / len(known)) ** 0.5
        for reward, there in zip(rewards, available, strict=True):
            others = (sum(known) - reward) / (len(known) - 1)
            advantage = reward - (others if baseline == "leave_one_out" else mean)
            result.append((advantage / (std + 1e-4) if scale == "std" else advantage) if there else 0.0)
    return result


def twin_policy_gradient(setting: Setting, network, advantages) -> torch.Tensor:
    recipe, rows = setting.recipe, setting.rollouts
    spec, temperature = recipe.objective.policy_gradient, recipe.rollout.temperature
    policy = token_rows(network, rows.prompts, rows.answers, temperature)
    with torch.no_grad():
        before = copy.deepcopy(setting.old_network).double() if rows.old_logp is not None else network
        old = token_rows(before, rows.prompts, rows.answers, temperature)
    losses: list[list[torch.Tensor]] = []
    for row, answer in judged(rows.answers):
        losses.append([])
        for t in chosen(answer, spec.scope):
            token = int(answer.ids[t])
            ratio = torch.exp(policy[row][t, token] - old[row][t, token])
            gain = ratio * advantages[row]
            if spec.clip is not None:
                gain = torch.minimum(gain, torch.clamp(ratio, 1 - spec.clip, 1 + spec.clip) * advantages[row])
            correction = torch.exp(old[row][t, token] - float(rows.sampler_logp[row, t]))
            correction = min(float(correction), recipe.rollout.importance_cap)
            weight = spec.text_weight if answer.text[t] else spec.speech_weight
            losses[-1].append(-weight * correction * gain)
    return LAMBDA * normalised(losses, spec.normaliser)


def twin_kl(setting: Setting, network, reference, modality: str) -> torch.Tensor:
    recipe, rows = setting.recipe, setting.rollouts
    policy = token_rows(network, rows.prompts, rows.answers, recipe.rollout.temperature)
    with torch.no_grad():
        theirs = token_rows(reference, rows.prompts, rows.answers, recipe.rollout.temperature)
    losses: list[list[torch.Tensor]] = []
    for row, answer in judged(rows.answers):
        losses.append([])
        for t in chosen(answer, modality):
            if recipe.objective.kl.estimator == "exact":
                losses[-1].append((policy[row][t].exp() * (policy[row][t] - theirs[row][t])).sum())
            else:
                gap = theirs[row][t, answer.ids[t]] - policy[row][t, answer.ids[t]]
                losses[-1].append(torch.exp(gap) - gap - 1)
    return getattr(recipe.objective.kl, modality) * normalised(losses, "sequence")


def twin_sft(setting: Setting, network) -> torch.Tensor:
    spec, rows = setting.recipe.objective.sft, setting.targets
    policy = token_rows(network, rows.prompts, rows.answers, 1.0)
    losses = [
        [
            -(spec.text_weight if answer.text[t] else spec.speech_weight) * policy[row][t, answer.ids[t]]
            for t in chosen(answer, spec.scope)
        ]
        for row, answer in enumerate(rows.answers)
    ]
    return (1 - LAMBDA) * normalised(losses, spec.normaliser)


def twin_metrics(setting: Setting) -> dict[str, float]:
    """What is counted and measured about the rollouts, before any normalising."""
    spec, rows = setting.recipe.objective.policy_gradient, setting.rollouts
    with torch.no_grad():
        policy = token_rows(setting.policy.network, rows.prompts, rows.answers, setting.recipe.rollout.temperature)
    gaps = [
        float(policy[row][t, answer.ids[t]] - rows.sampler_logp[row, t])
        for row, answer in judged(rows.answers)
        for t in chosen(answer, spec.scope)
        if (spec.text_weight if answer.text[t] else spec.speech_weight) > 0
    ]
    counts = {"pg/tokens": len(gaps), "sampler/mismatch": sum(map(abs, gaps))}
    counts["sampler/ratio"] = sum(map(math.exp, gaps))
    counts["sampler/truncated"] = sum(math.exp(gap) > setting.recipe.rollout.importance_cap for gap in gaps)
    kl = [m for m in ("text", "speech") if getattr(setting.recipe.objective.kl, m)]
    return counts | {f"kl/{m}_tokens": sum(len(chosen(a, m)) for _, a in judged(rows.answers)) for m in kl}


def twin(setting: Setting) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The components of the loss and the gradient of their sum."""
    network = copy.deepcopy(setting.policy.network).double()
    network.zero_grad()
    spec, kl = setting.recipe.objective.policy_gradient, setting.recipe.objective.kl
    parts = {
        "loss/pg": twin_policy_gradient(setting, network, naive_advantages(spec.baseline, spec.scale)),
        "loss/sft": twin_sft(setting, network),
    }
    if setting.reference:
        reference = copy.deepcopy(setting.reference.policy.network).double()
        parts |= {f"loss/kl_{m}": twin_kl(setting, network, reference, m) for m in ("text", "speech") if getattr(kl, m)}
    sum(parts.values()).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: float(value.detach()) for name, value in parts.items()}, gradients


def assert_same_gradients(ours: dict, theirs: dict, relative: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = (ours[name].double() - theirs[name]).norm() / theirs[name].norm()
        assert error < relative, f"{name}: {float(error):.1e}"


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
def test_loss_and_gradient_are_the_twins(model_folder, overrides):
    setting = Setting(make_recipe(model_folder, *overrides))
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    parts, gradients = twin(setting)
    assert {name for name in totals if name.startswith("loss/")} == parts.keys()
    parts |= twin_metrics(setting)
    assert {name: totals[name] for name in parts} == pytest.approx(parts, rel=1e-5, abs=1e-7)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.mark.parametrize("clip", [0.05, 0.2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_later_updates_on_the_same_rollouts_are_the_twins(model_folder, clip, temperature):
    recipe = make_recipe(
        model_folder, f"{PG}.clip={clip}", f"{PG}.scope=all", "optim.updates_per_rollout=2",
        f"rollout.temperature={temperature}",
    )  # fmt: skip
    setting = Setting(recipe, old=True)
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    parts, gradients = twin(setting)
    assert 0 < totals["pg/clipped"] < totals["pg/tokens"]
    assert {name: totals[name] for name in parts} == pytest.approx(parts, rel=1e-5, abs=1e-7)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.mark.parametrize("overrides", [[], ["rollout.importance_cap=1.05"], [f"{PG}.clip=0.01"]], ids=" ".join)
def test_answers_that_an_older_policy_sampled_are_the_twins(model_folder, overrides):
    """π/π_older weighs the advantage, capped; the clip, around the policy before the first update, is idle."""
    setting = Setting(make_recipe(model_folder, f"{PG}.scope=all", *overrides))
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
def whole(model_folder) -> tuple[Setting, dict[str, float], dict[str, torch.Tensor]]:
    setting = Setting(make_recipe(model_folder, f"{PG}.scope=all"))
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
def test_an_unavailable_rollout_changes_nothing(model_folder, normaliser, overrides):
    """However many a group holds, wherever, whatever they say and whatever number stands in their cell."""
    setting = Setting(make_recipe(model_folder, f"{PG}.scope=all", f"{PG}.normaliser={normaliser}", *overrides))
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


def test_when_no_judge_answers_only_the_supervised_targets_are_learned(model_folder):
    setting = Setting(make_recipe(model_folder, f"{PG}.scope=all"))
    rows = setting.rows_of(setting.sampled, REWARDS, torch.zeros(2, 3, dtype=torch.bool))
    totals, ours = setting.update(rows, setting.targets, LAMBDA).values, setting.gradients()
    alone = setting.update(None, setting.targets, LAMBDA).values
    assert_same_gradients(ours, setting.gradients(), 1e-6)
    assert {name: value for name, value in totals.items() if value} == pytest.approx(alone)


@pytest.mark.parametrize("overrides", [["objective.kl.estimator=exact"], [f"{PG}.scope=all"]], ids=" ".join)
def test_passes_for_the_sake_of_other_processes_count_nothing(model_folder, monkeypatch, overrides):
    """Others have a micro-batch more of rollouts than this one, and one more of targets."""
    setting = Setting(make_recipe(model_folder, *overrides))
    passes, once = [], setting.policy.forward
    monkeypatch.setattr(setting.policy, "forward", lambda *a: passes.append(a) or once(*a))
    totals = setting.update(setting.rollouts, setting.targets, LAMBDA).values
    alone, gradients = len(passes), setting.gradients()
    monkeypatch.setattr(update, "most", lambda _accelerator, count: count + 1)
    assert setting.update(setting.rollouts, setting.targets, LAMBDA).values == totals
    assert len(passes) == 2 * alone + 2
    for name, gradient in setting.gradients().items():
        assert torch.equal(gradient, gradients[name]), name


def test_without_anything_to_learn_the_gradient_is_zero(model_folder):
    """No text sampled, text in scope only, λ = 1: a loss of 0 with a gradient of 0, not an error."""
    setting = Setting(make_recipe(model_folder, "objective.kl.text=0", "objective.kl.speech=0"))
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
