"""A preference step's loss and gradient against a twin that loops over tokens in float64 over the whole vocabulary."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elocute.models.layout import Tokens
from elocute.recipe import Recipe, load_recipe
from elocute.training import preference_update
from elocute.training.pairs import Pair
from elocute.training.passes import Limits
from elocute.training.policy import Reference, load_policy
from elocute.training.preference_update import PreferenceUpdate, score_pairs
from elocute.training.update import Totals

WEIGHTS = [1.0, 0.5, 2.0]
CPU = torch.device("cpu")


def make_recipe(model: Path, *overrides: str) -> Recipe:
    base = [f"model={model}", "run_dir=unused", "data.eval=null", "optim.micro_batch=4", "rewards=[]"]
    base += ["objective={kind: dpo, beta: 0.3, sft: {weight: 0.7}}", "rollout.temperature=0.5"]  # which must not matter
    return load_recipe("recipes/starter/dpo.yaml", [*base, *overrides])


class Setting:
    """A perturbed policy and three pairs of differing lengths, one answer of them cut, one without any text."""

    def __init__(self, recipe: Recipe):
        draw = torch.Generator().manual_seed(3)
        self.recipe, self.policy = recipe, load_policy(recipe)
        self.reference = Reference(recipe, self.policy)
        layout = self.policy.lm.layout

        def answer(text: int, units: int) -> Tokens:
            ids = torch.randint(30, 280, (text,), generator=draw).tolist()
            return layout.assemble(ids, torch.randint(0, layout.n_units, (units,), generator=draw).tolist())

        cut = answer(2, 12)
        cut = Tokens(cut.ids[:5], cut.text[:5], cut.action[:5])
        speech = Tokens(torch.tensor([layout.first_unit + 3]), torch.tensor([False]), torch.tensor([True]))
        answers = [(answer(3, 14), answer(1, 3)), (answer(5, 31), cut), (answer(2, 11), speech)]
        prompts = [torch.randint(30, 280, (n,), generator=draw) for n in (4, 9, 6)]
        pairs = [Pair(p, *both, weight) for p, both, weight in zip(prompts, answers, WEIGHTS, strict=True)]
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
        sums = self.scored(lambda batch: self.reference.logprobs(batch, 1.0), pairs)
        self.pairs = [pair._replace(reference=known) for pair, known in zip(pairs, sums, strict=True)]
        self.update = PreferenceUpdate(recipe, self.policy, Accelerator(cpu=True))
        self.spare = self.pairs[2].prompt, self.pairs[2].rejected

    def scored(self, score, pairs: list[Pair]) -> torch.Tensor:
        return score_pairs(self.recipe, self.policy, score, pairs, "all", CPU)

    def learn(self, pairs: list[Pair]) -> Totals:
        return self.update(pairs, self.spare)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {name: parameter.grad.clone() for name, parameter in self.policy.network.named_parameters()}
        self.policy.zero_grad()
        return found


# the twin


def token_logprobs(network, prompt: torch.Tensor, answer: Tokens) -> torch.Tensor:
    """One row at a time: the full log-softmax in float64, at every answer token [T]."""
    logits = network(input_ids=torch.cat([prompt, answer.ids])[None]).logits[0].double()
    logp = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logp.gather(1, answer.ids[:, None])[:, 0]


def chosen_tokens(answer: Tokens, scope: str) -> list[int]:
    text = {"all": (True, False), "text": (True,), "speech": (False,)}[scope]
    return [t for t in range(len(answer)) if bool(answer.action[t]) and bool(answer.text[t]) in text]


def answer_logprob(spec, logp: torch.Tensor, answer: Tokens) -> torch.Tensor:
    places = chosen_tokens(answer, spec.scope)
    total = torch.zeros((), dtype=torch.float64)
    for t in places:
        total = total + (spec.text_weight if answer.text[t] else spec.speech_weight) * logp[t]
    return total / max(1, len(places)) if spec.length_normalised or spec.loss == "ipo" else total


def twin(setting: Setting) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The components of the loss and the gradient of their sum."""
    spec = setting.recipe.objective
    network = copy.deepcopy(setting.policy.network).double()
    reference = copy.deepcopy(setting.reference.policy.network).double()
    network.zero_grad()
    preference, supervised = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    all_learned = sum(len(chosen_tokens(pair.chosen, spec.sft.scope)) for pair in setting.pairs)
    for pair in setting.pairs:
        ours = [token_logprobs(network, pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
        with torch.no_grad():
            theirs = [token_logprobs(reference, pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
        chosen, rejected = (
            answer_logprob(spec, logp, answer) - answer_logprob(spec, known, answer)
            for logp, known, answer in zip(ours, theirs, (pair.chosen, pair.rejected), strict=True)
        )
        margin = spec.beta * (chosen - rejected)
        if spec.loss == "ipo":
            loss = (chosen - rejected - 1 / (2 * spec.beta)) ** 2
        elif spec.loss == "hinge":
            loss = torch.clamp(1 - margin, min=0)
        else:
            loss = (1 - spec.label_smoothing) * torch.log1p(torch.exp(-margin))
            loss = loss + spec.label_smoothing * torch.log1p(torch.exp(margin))
        preference = preference + pair.weight * loss / len(setting.pairs)
        learned = chosen_tokens(pair.chosen, spec.sft.scope)
        for t in learned:
            weight = spec.sft.text_weight if pair.chosen.text[t] else spec.sft.speech_weight
            share = {
                "sequence": 1 / len(learned) / len(setting.pairs),
                "token": 1 / all_learned,
                "group": 1 / len(setting.pairs),
            }
            supervised = supervised - spec.sft.weight * weight * ours[0][t] * share[spec.sft.normaliser]
    (preference + supervised).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"loss/dpo": preference.item(), "loss/sft": supervised.item()}, gradients


def assert_same_gradients(ours: dict, theirs: dict, relative: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = (ours[name].double() - theirs[name]).norm() / theirs[name].norm()
        assert error < relative, f"{name}: {float(error):.1e}"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["scope=all", "text_weight=2", "speech_weight=0.3", "sft.scope=text"],
        ["scope=speech", "length_normalised=true", "speech_weight=3", "sft.normaliser=token"],
        ["label_smoothing=0.2", "scope=all", "text_weight=0", "sft.speech_weight=0.5"],
        ["loss=ipo", "scope=all", "sft.normaliser=group"],
        ["loss=hinge", "length_normalised=true", "sft.scope=speech"],
        ["scope=all", "sft.weight=0"],
    ],
    ids=lambda overrides: " ".join(overrides) or "defaults",
)
def test_loss_and_gradient_are_the_twins(tiny_folder, overrides):
    setting = Setting(make_recipe(tiny_folder, *(f"objective.{o}" for o in overrides)))
    totals = setting.learn(setting.pairs).values
    parts, gradients = twin(setting)
    if not setting.recipe.objective.sft.weight:
        del parts["loss/sft"]
    assert {name: value for name, value in totals.items() if name.startswith("loss/")} == pytest.approx(parts, rel=1e-5)
    assert_same_gradients(setting.gradients(), gradients, 2e-5)


@pytest.fixture(scope="module")
def whole(tiny_folder):
    setting = Setting(make_recipe(tiny_folder, "objective.scope=all"))
    totals = setting.learn(setting.pairs).values
    return setting, totals, setting.gradients()


@pytest.fixture
def limited(whole, monkeypatch):
    """Passes of at most so many rows and cells; each batch made so far."""
    batches = []
    make_batch = preference_update.make_batch
    monkeypatch.setattr(preference_update, "make_batch", lambda *a: batches.append(make_batch(*a)) or batches[-1])

    def limit(rows: int, cells: float) -> list:
        limits = Limits(rows, cells, 16)
        monkeypatch.setattr(preference_update, "Limits", SimpleNamespace(of=lambda device, micro_batch: limits))
        batches.clear()
        return batches

    yield limit
    whole[0].policy.zero_grad()


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(3)), rows=st.integers(1, 6), cells=st.sampled_from([1, 60, math.inf]))
def test_padding_passes_and_the_order_of_pairs_are_invisible(whole, limited, order, rows, cells):
    setting, totals, gradients = whole
    limited(rows, cells)
    shuffled = [setting.pairs[i] for i in order]
    assert setting.learn(shuffled).values == pytest.approx(totals, rel=1e-5, abs=1e-6)
    assert_same_gradients(setting.gradients(), gradients, 1e-5)
    ours = setting.scored(lambda batch: setting.reference.logprobs(batch, 1.0), shuffled)
    torch.testing.assert_close(ours, torch.stack([pair.reference for pair in shuffled]), rtol=1e-6, atol=1e-5)


def test_a_pair_is_one_pass_at_least_and_runs_its_prompt_once(whole, limited):
    """Its answers are 19, 40 and 15 steps long at most: those of like length go together, none beside a long one."""
    setting = whole[0]
    for rows, cells, passes in [(1, math.inf, 3), (4, math.inf, 2), (6, math.inf, 2), (6, 100, 2), (6, 1, 3)]:
        batches = limited(rows, cells)
        setting.learn(setting.pairs)
        assert len(batches) == passes
        assert all(len(batch.answer_ids) == 2 * len(batch.prompts) for batch in batches)
        longest = [batch.answer_ids.shape[1] for batch in batches]
        assert max(longest) not in [n for n, batch in zip(longest, batches, strict=True) if len(batch.prompts) > 1]


def test_what_is_measured_is_what_the_pairs_say(whole):
    setting, totals, _ = whole
    with torch.no_grad():
        ours = setting.scored(lambda batch: setting.policy(batch)[0], setting.pairs)
    theirs = torch.stack([pair.reference for pair in setting.pairs])
    rewards = setting.recipe.objective.beta * (ours - theirs).sum(-1)
    margin = rewards[:, 0] - rewards[:, 1]
    expected = {
        "dpo/accuracy": int((margin > 0).sum()),
        "dpo/margin": margin.sum().item(),
        "dpo/chosen_reward": rewards[:, 0].sum().item(),
        "dpo/rejected_reward": rewards[:, 1].sum().item(),
        "logp/chosen_text": ours[:, 0, 0].sum().item(),
        "logp/chosen_speech": ours[:, 0, 1].sum().item(),
        "logp/rejected_text": ours[:, 1, 0].sum().item(),
        "logp/rejected_speech": ours[:, 1, 1].sum().item(),
    }
    assert {name: totals[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_without_a_pair_the_gradient_is_zero(whole):
    setting = whole[0]
    totals = setting.learn([]).values
    assert totals.keys() == whole[1].keys() and not any(totals.values())
    assert all(bool((gradient == 0).all()) for gradient in setting.gradients().values())


@pytest.mark.parametrize("pairs", [0, 3])
def test_passes_for_the_sake_of_other_processes_count_nothing(whole, monkeypatch, pairs):
    """Others have two more micro-batches than this one."""
    setting, passes = whole[0], []
    once = setting.policy.forward
    monkeypatch.setattr(setting.policy, "forward", lambda *a: passes.append(a) or once(*a))
    totals = setting.learn(setting.pairs[:pairs]).values
    alone, gradients = len(passes), setting.gradients()
    monkeypatch.setattr(preference_update, "most", lambda _accelerator, count: max(1, count) + 2)
    assert setting.learn(setting.pairs[:pairs]).values == totals
    assert len(passes) == 2 * alone + 2
    for name, gradient in setting.gradients().items():
        assert torch.equal(gradient, gradients[name]), name


def test_a_pair_without_a_token_in_scope_has_a_gradient_of_zero(tiny_folder):
    setting = Setting(make_recipe(tiny_folder, "objective.scope=text", "objective.sft.weight=0"))
    speech = setting.pairs[2].rejected
    pair = setting.pairs[2]._replace(chosen=speech, reference=torch.zeros(2, 2, dtype=torch.float64))
    setting.learn([pair])
    assert all(bool((gradient == 0).all()) for gradient in setting.gradients().values())


def test_the_reference_of_lora_is_the_model_with_the_adapter_off(tiny_folder):
    setting = Setting(make_recipe(tiny_folder, "lora.rank=2"))
    with torch.no_grad():
        adapter = [parameter for name, parameter in setting.policy.network.named_parameters() if "lora_" in name]
        for parameter in adapter:
            parameter.zero_()
    ours = setting.scored(lambda batch: setting.policy(batch)[0], setting.pairs)
    torch.testing.assert_close(ours, torch.stack([pair.reference for pair in setting.pairs]), rtol=1e-6, atol=1e-5)
