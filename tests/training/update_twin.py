"""An update's loss and gradient, a loop over tokens in float64 over the whole vocabulary, and rows for both."""

import copy
import math
from pathlib import Path

import torch
from accelerate import Accelerator

from elocute.models.layout import Tokens
from elocute.recipe import Recipe, load_recipe
from elocute.rollout import Rollout
from elocute.training.experience import Experience
from elocute.training.policy import Reference, load_policy
from elocute.training.trainer import Trainer
from elocute.training.update import Rows, Update

LAMBDA = 0.3
REWARDS = torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.5, 0.0]], dtype=torch.float64)
AVAILABLE = torch.tensor([[True, True, False], [True, True, True]])  # the one no judge judged is the longest


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
