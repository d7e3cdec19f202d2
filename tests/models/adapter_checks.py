"""What the adapter of a published model must prove, whatever its streams and stages.

A module of tests for one has a fixture `folder`, a tiny random checkpoint as it is published, and

    class TestAdapter(AdapterChecks):
        still = ("vpm.",)

The fixtures lm, rows, prompts and groups are there for its own tests, too (conftest.py).
"""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from elocute.cli import app
from elocute.data.cache import EncodedAudio
from elocute.data.rows import each_row, read_rows
from elocute.errors import InputError
from elocute.models import check_model, lean, load_model, sizes_of_model
from elocute.models.batch import Batch, make_batch, pad_tokens
from elocute.pipelines.sample import Answerer
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer

LENGTH, TEMPERATURE = 14, 0.9
OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: all}, sft: {scope: all}, "
    "kl: {text: 0.1, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: all}",
}


class AdapterChecks:
    """still: how the names of tensors begin that no training here moves. written: what a target's text is read back as.
    more: what else the recipe of a step with LoRA says. control: a token that no row may hold. least: the share of
    its trained weights that its files' headers are known to tell of."""

    still: tuple[str, ...] = ()
    written = "hel"
    more: tuple[str, ...] = ()
    control = "<|im_end|>"
    least = 0.9

    def tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        """All weights of a folder, those that are only computed left out."""
        return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}

    def check_run(self, folder: Path, adapters: set[str]) -> None:
        """What else a run's model folder must have; adapters: the parameters that were trained."""

    def test_the_published_folder_is_enough(self, folder, lm):
        check_model(folder)
        assert lm.settings == {} and not (folder / "elocute.json").exists()

    def test_its_files_say_how_large_it_is(self, folder, lm, prompts):
        check_size(folder, lm, prompts, self.least)

    @pytest.mark.parametrize("share_prompts", [True, False])
    def test_score_is_sample(self, lm, groups, share_prompts):
        rollouts = [rollout for group in groups for rollout in group]
        logp = score(lm, rollouts, share_prompts=share_prompts)
        sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
        assert len(sampled) > len(rollouts) and (logp - sampled).abs().max() < 1e-5

    def test_each_head_has_its_temperature(self, lm, prompts, groups):
        """What is sampled is what is scored, and what is compared with the reference; another one is another score."""
        each = [0.5 + 0.1 * (head % 5) for head in range(len(lm.heads()))]
        seeds = [[7 * prompt, 7 * prompt + 1] for prompt in range(len(prompts))]
        rollouts = [r for group in sample_groups(lm, prompts, seeds, Sampling(LENGTH, each)) for r in group]
        sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
        batch, _ = batch_of(rollouts)
        with torch.no_grad():
            logp, kl = Policy(lm)(batch, each, lm.states(batch, share_prompts=True))
        assert (logp - sampled).abs().max() < 1e-5 and kl.abs().max() < 1e-5
        assert (score(lm, rollouts) - sampled).abs().max() > 1e-3
        with pytest.raises(
            InputError, match=f"temperature: expected one number or {len(each)}, .* heads, got {len(each) + 1}"
        ):
            sample_groups(lm, prompts[:1], [[1]], Sampling(LENGTH, [*each, 1.0]))

    def test_an_answer_does_not_depend_on_its_company(self, lm, prompts, groups):
        """Neither how it is sampled nor how it is scored."""
        for prompt, group in zip(prompts, groups, strict=True):
            for rollout in group:
                [[alone]] = sample_groups(lm, [prompt], [[rollout.seed]], Sampling(LENGTH, TEMPERATURE))
                assert torch.equal(alone.tokens.ids, rollout.tokens.ids)
                assert torch.allclose(alone.logprob, rollout.logprob, atol=1e-5)
                assert (score(lm, [alone]) - rollout.logprob[rollout.tokens.action]).abs().max() < 1e-5

    def test_forced_cells_are_no_actions(self, lm, groups):
        for rollout in (rollout for group in groups for rollout in group):
            replayed = lm.cursor(rollout.prompt)
            cells = iter(zip(rollout.tokens.ids.tolist(), rollout.tokens.action.tolist(), strict=True))
            while not replayed.done and (forced := replayed.forced()) and (step := take(cells, len(forced))):
                assert [token if not action else None for token, action in step] == list(forced)
                replayed.push(*(token for token, _ in step))
            assert next(cells, None) is None
            assert (rollout.logprob[~rollout.tokens.action] == 0).all() and (rollout.logprob <= 0).all()

    def test_forced_cells_have_no_gradient(self, lm, groups, monkeypatch):
        """Exactly 0 at what says them, though they are scored, too; actions have one."""
        found, states = [], lm.states

        def leaves(batch, **how):
            found.extend(replace(of, hidden=of.hidden.detach().requires_grad_()) for of in states(batch, **how))
            return found

        monkeypatch.setattr(lm, "states", leaves)
        batch, action = batch_of([rollout for group in groups for rollout in group], forced=True)
        with torch.enable_grad():
            (Policy(lm)(batch)[0] * action).sum().backward()
        lm.model.zero_grad()
        for of in found:
            moves, mine = of.hidden.grad.abs().amax(-1) > 0, action if of.where is None else action[of.where]
            assert not moves[~mine].any() and moves[mine].all()
        assert sum(len(of.hidden) for of in found) == len(action)

    def test_every_weight_that_is_trained_has_a_gradient(self, lm, groups):
        """Whatever is scored: processes add them up, and wait for each other's."""
        batch, _ = batch_of(groups[0][:1])
        for count in (1, 0):
            lm.model.zero_grad()
            Policy(lm)(selecting(batch, count))[0].sum().backward()
            gradients = [p.grad for p in lm.model.parameters() if p.requires_grad]
            assert None not in gradients and any(g.any() for g in gradients) == bool(count)
        lm.model.zero_grad()

    def test_every_pass_goes_once_through_each_layer_and_back(self, lm, groups, monkeypatch):
        """In one order, whatever is scored: processes that have them in parts wait for each other at each."""
        monkeypatch.setattr(lm, "divided", True)
        seen: list[tuple[str, int]] = []

        def watch(number: int):
            def there(_module, _inputs, output) -> None:
                seen.append(("there", number))
                output = output[0] if isinstance(output, tuple) else output
                output.register_hook(lambda _grad: seen.append(("back", number)))

            return there

        hooks = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(lm.layers())]
        whole, short = batch_of([r for group in groups for r in group])[0], batch_of(groups[-1][:1])[0]
        orders = []
        for batch in (whole, selecting(whole, 1), selecting(whole, -1), selecting(short, 0)):
            with torch.enable_grad():
                Policy(lm, share_prompts=False)(batch)[0].sum().backward()
            orders.append(list(seen))
            seen.clear()
        for hook in hooks:
            hook.remove()
        lm.model.zero_grad()
        assert all(order == orders[0] for order in orders)
        assert sorted(orders[0]) == sorted((way, n) for way in ("there", "back") for n in range(len(hooks)))

    @pytest.mark.parametrize("share_prompts", [True, False])
    def test_score_is_sample_in_bfloat16(self, lm, prompts, share_prompts, monkeypatch):
        """Weights in float32, products in bfloat16, each of them right to 1/256, in sampler and scorer alike."""
        monkeypatch.setattr(lm, "compute", torch.bfloat16)
        seeds = [[100 * prompt, 100 * prompt + 1] for prompt in range(len(prompts))]
        groups = sample_groups(lm, prompts, seeds, Sampling(LENGTH, TEMPERATURE))
        rollouts = [rollout for group in groups for rollout in group]
        sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
        same = (score(lm, rollouts, share_prompts=share_prompts) - sampled).abs().mean()
        lm.compute = None
        other = (score(lm, rollouts) - sampled).abs().mean()
        assert other > 0.004 and same < 0.02 and same < 0.7 * other  # some products are added in another order

    def test_targets_are_read_back(self, lm, rows):
        row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
        tokens = lm.encode_target(row, audio)
        answer = lm.layout.read(tokens.ids)
        answer.close()
        expected = audio.units(row.target_audio).tolist()
        assert not answer.broken and [*map(as_list, answer.units)] == expected and tokens.action.any()
        utterance = lm.decode(tokens.ids)
        assert utterance.text == self.written and len(utterance.waveform) > 0 and not utterance.broken

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_one_step_of_lora_moves_the_adapter_and_is_saved_as_published(self, folder, rows, tmp_path, objective):
        run = tmp_path / "run"
        adapters, moved = self.step(recipe_of(folder, rows, run, objective, "lora={rank: 4}", *self.more))
        assert all("lora_" in name for name in adapters)
        assert max(float(p.detach().abs().max()) for name, p in adapters.items() if "lora_B" in name) > 0
        assert moved and not any(name.startswith(self.still) for name in moved)
        self.check_run(run / "model", set(adapters))

    def step(self, recipe) -> tuple[dict[str, torch.nn.Parameter], set[str]]:
        """Train and save: the parameters that were trained, and which tensors of the folder moved."""
        trainer = Trainer(recipe)
        assert trainer.train()
        trained = {name: p for name, p in trainer.lm.model.named_parameters() if p.requires_grad}
        trainer.save_model()
        trainer.close()
        saved, merged = recipe.run_dir / "model", trainer.lm.plain_model().state_dict()
        again = load_model(saved).model.state_dict()
        assert merged.keys() == again.keys() and all(torch.allclose(merged[name], again[name]) for name in merged)
        before, after = self.tensors(Path(recipe.model)), self.tensors(saved)
        assert before.keys() == after.keys()
        return trained, {name for name in before if not torch.equal(before[name].float(), after[name].float())}

    def test_elocute_sample_takes_it(self, folder, rows, tmp_path):
        words = ["sample", "recipes/starter/wavalign.yaml", f"model={folder}", f"rollout.max_new_tokens={LENGTH}"]
        app([*words, "--data", str(rows), "-n", "2", "-o", str(tmp_path / "out")], standalone_mode=False)
        lines = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
        assert [len(line["output"]) for line in lines] == [2] * len(read_rows(rows))

    def odd(self, lm) -> list[list[int]]:
        """Answers that come back only as they were sampled: their text, or their end, is not laid out so."""
        return []

    def test_what_was_sampled_comes_back_from_its_row(self, lm, rows, groups, tmp_path):
        odd = [said(lm, ids) for ids in self.odd(lm)]
        assert comes_back(lm, rows, odd, tmp_path) == len(odd)
        assert comes_back(lm, rows, groups[0], tmp_path) or odd

    def test_control_tokens_are_refused(self, lm, tmp_path):
        turns = [{"role": "user", "content": self.control}]
        (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        with pytest.raises(InputError) as caught:
            lm.encode_prompt(read_rows(tmp_path / "bad.jsonl")[0], EncodedAudio(lm.codec))
        assert "bad.jsonl:1: messages" in str(caught.value) and self.control in str(caught.value)
        assert "\n" not in str(caught.value)


def selecting(batch: Batch, count: int) -> Batch:
    """The same answers, of their selected cells the first `count`, or the last."""
    kept = slice(count) if count >= 0 else slice(count, None)
    return replace(batch, rows=batch.rows[kept], columns=batch.columns[kept], targets=batch.targets[kept])


def batch_of(rollouts, *, forced: bool = False) -> tuple[Batch, torch.Tensor]:
    """The rollouts' actions, and forced cells if asked for, as a batch; which of its cells are actions, bool [N]."""
    answers = [rollout.tokens for rollout in rollouts]
    action = pad_tokens(answers).action
    batch = make_batch([r.prompt for r in rollouts], answers, action | forced, "cpu")
    return batch, action[batch.rows, batch.columns]


def score(lm, rollouts, *, share_prompts: bool = True) -> torch.Tensor:
    """The actions' log-probs [N] by teacher forcing, answer by answer."""
    with torch.no_grad():
        return Policy(lm, share_prompts=share_prompts)(batch_of(rollouts)[0], TEMPERATURE)[0]


def recipe_of(folder: Path, rows: Path, run_dir: Path, objective: str, *more: str):
    """One step with a large learning rate; the reward is the length of what comes out."""
    judge = "{kind: function, function: 'tests/models/adapter_checks.py:length', low: 0, high: 100}"
    given = [
        f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={run_dir}", "steps=1",
        f"objective={OBJECTIVES[objective]}", f"rewards=[{'' if objective == 'dpo' else judge}]",
        "rollout.group_size=2", "rollout.prompts_per_step=3", f"rollout.max_new_tokens={LENGTH}",
        "optim.warmup_steps=0", "optim.lr=0.01", "reward_mix.invalid_penalty=0",
    ]  # fmt: skip
    return load_recipe("recipes/starter/wavalign.yaml", [*given, *more])


def said(lm, ids) -> SimpleNamespace:
    """A rollout of these cells."""
    return SimpleNamespace(tokens=lm.layout.read(ids).tokens(), seed=0, truncated=False)


def comes_back(lm, rows: Path, rollouts, tmp_path: Path) -> int:
    """How many of the answers to the first row are whole, and learnt cell by cell once `sample` has written them."""
    (tmp_path / "audio").mkdir(exist_ok=True)
    answerer = Answerer.__new__(Answerer)  # its model is here already
    answerer.lm, answerer.data, answerer.out = lm, rows, tmp_path
    line = answerer._line(next(each_row(rows)), rollouts)
    output, audio, found = line.pop("output"), EncodedAudio(lm.codec), 0
    for candidate, rollout in zip(output.values(), rollouts, strict=True):
        if candidate["broken"]:
            continue
        parts = {name: candidate[f"output-{name}"] or None for name in ("text", "units", "tokens")}
        answers = {f"{field}_{name}": part for field in ("sft_target", "rejected") for name, part in parts.items()}
        (tmp_path / "one.jsonl").write_text(json.dumps(line | {"rejected_cut": candidate.get("cut")} | answers) + "\n")
        [row] = read_rows(tmp_path / "one.jsonl")
        for tokens in (lm.encode_target(row, audio), lm.encode_rejected(row, audio)):
            for name in ("ids", "text", "action"):
                assert torch.equal(getattr(tokens, name), getattr(rollout.tokens, name))
        found += 1
        last = parts["tokens"][:-1]
        for spoilt in (last, [*last, 10**6], [*parts["tokens"], 1]):
            with pytest.raises(InputError, match="one.jsonl:1: sft_target_tokens: expected a whole answer"):
                lm.encode_target(replace(row, target_audio=replace(row.target_audio, tokens=tuple(spoilt))), audio)
    return found


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def take(cells, count: int) -> list[tuple[int, bool]]:
    return [cell for _, cell in zip(range(count), cells, strict=False)]


def as_list(unit):
    """A unit, or a frame of several codebooks."""
    return list(unit) if isinstance(unit, tuple) else unit


def check_size(folder: Path, lm, prompts, least: float = 0.9) -> None:
    """What a folder's files say is what decoding keeps, and what is trained or at `least` this share of it."""
    sizes, network = sizes_of_model(folder), dict(lm.model.named_parameters())
    trained = {name: weight.numel() for name, weight in network.items() if weight.requires_grad and not lm.idle(name)}
    assert least * sum(trained.values()) < sizes.weights < 1.05 * sum(trained.values())
    [decoder] = islice(lm.decoders(prompts, 1, [lm.cursor(prompt) for prompt in prompts]), 1)
    assert sizes.lean == (type(decoder) is lean.Decoder)
    if hasattr(decoder, "cache"):
        kept = sum(layer.keys.numel() + layer.values.numel() for layer in decoder.cache.layers) / decoder.mask.numel()
        assert kept <= sizes.keys_values <= 3 * kept  # a second stage keeps its own
    assert sizes.vocabulary in {tuple(weight.shape) for weight in network.values()} and sizes.activations
