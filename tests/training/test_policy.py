"""The policy and its reference: heads that would be scored wrongly, LoRA, frozen parts, memory and dtype options."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    PhiConfig,
    PhiForCausalLM,
)

from elocute.errors import InputError
from elocute.models import load_model
from elocute.models.batch import Batch, make_batch
from elocute.models.interleaved import InterleavedLM
from elocute.models.layout import Tokens
from elocute.recipe import Recipe, load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy, Reference, check_head, kl_per_token, load_policy
from elocute.training.trainer import Trainer

KL = ["objective.kl.text=0.1", "objective.kl.speech=0.1"]
LORA = ["lora.rank=4"]


@pytest.fixture(scope="module")
def leaky_folder(tiny_folder, tiny_lm, tmp_path_factory) -> Path:
    """The same weights with a config that asks for dropout."""
    folder = tmp_path_factory.mktemp("leaky")
    tiny_lm.save(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.attention_dropout = 0.5
    config.save_pretrained(folder)
    return folder


def make_recipe(model: Path, *overrides: str, run: object = "unused") -> Recipe:
    small = ["data.eval=null", "report=false", "rollout.group_size=2", "rollout.prompts_per_step=2"]
    small += ["rollout.max_new_tokens=8", "steps=2", "optim.warmup_steps=0"]
    return load_recipe("recipes/starter/wavalign.yaml", [f"model={model}", f"run_dir={run}", *small, *overrides])


PROMPTS = [torch.tensor([30, 31, 32]), torch.tensor([40, 41, 42, 43, 44])]
ANSWERS = [torch.tensor([51, 60, 70]), torch.tensor([52, 60, 70, 80])]


def make_rows(selected: bool = True) -> Batch:
    """Both answers, every token selected, or none."""
    answers = [Tokens(ids, *[torch.ones_like(ids, dtype=torch.bool)] * 2) for ids in ANSWERS]
    return make_batch(PROMPTS, answers, torch.full((2, 4), selected), "cpu")


@torch.no_grad()
def expected_logp(network, temperature: float = 1.0) -> torch.Tensor:
    """The same by the whole network, one row at a time."""
    found = []
    for prompt, ids in zip(PROMPTS, ANSWERS, strict=True):
        logits = network(input_ids=torch.cat([prompt, ids])[None]).logits[0] / temperature
        logp = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append(logp.gather(1, ids[:, None])[:, 0])
    return torch.cat(found)


def perturb(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


# the head


def with_network(lm: InterleavedLM, network) -> InterleavedLM:
    return InterleavedLM(network.eval(), lm.tokenizer, lm.layout, lm.codec, lm.settings)


def small(lm: InterleavedLM) -> dict:
    return {
        "vocab_size": len(lm.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": None,
    }  # fmt: skip


def test_a_head_that_scales_its_logits_is_refused(tiny_lm):
    for scaling in (8.0, 1.01):
        network = GraniteForCausalLM(GraniteConfig(**small(tiny_lm), logits_scaling=scaling))
        with pytest.raises(InputError, match=r"^some/model: model: its logits are not head\(hidden\)[^\n]*$"):
            check_head(with_network(tiny_lm, network), "some/model")
    check_head(with_network(tiny_lm, GraniteForCausalLM(GraniteConfig(**small(tiny_lm), logits_scaling=1.0))), "")


def test_a_head_that_caps_its_logits_is_refused_however_small_they_are(tiny_lm):
    capped = Gemma2Config(**small(tiny_lm), head_dim=16, final_logit_softcapping=30.0)
    with pytest.raises(InputError, match="soft-capped"):
        check_head(with_network(tiny_lm, Gemma2ForCausalLM(capped)), "some/model")
    plain = Gemma2Config(**small(tiny_lm), head_dim=16, final_logit_softcapping=None)
    check_head(with_network(tiny_lm, Gemma2ForCausalLM(plain)), "")


def test_a_head_that_does_not_read_the_trunks_output_is_refused(tiny_folder):
    lm = load_model(tiny_folder)
    lm.head().register_forward_pre_hook(lambda _module, inputs: (inputs[0] / 8,))
    with pytest.raises(InputError, match=r"its logits are not head\(hidden\)"):
        check_head(lm, "some/model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_head_passes_and_is_left_as_it_was(tiny_folder, dtype):
    lm = load_model(tiny_folder, dtype=dtype)
    check_head(lm, "")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(lm.model(ids).logits, lm.head()(lm.trunk()(ids).last_hidden_state))


def test_a_head_with_a_bias_takes_k3_and_is_refused_the_exact_kl(tiny_lm, tmp_path):
    network = PhiForCausalLM(PhiConfig(**small(tiny_lm)))
    torch.nn.init.normal_(network.lm_head.bias)
    with_network(tiny_lm, network).save(tmp_path)
    with pytest.raises(InputError, match=r"objective.kl.estimator: the model's head has a bias; expected k3$"):
        load_policy(make_recipe(tmp_path, *KL, "objective.kl.estimator=exact"))
    policy = load_policy(make_recipe(tmp_path, *KL))
    assert torch.allclose(policy(make_rows())[0], expected_logp(policy.network), atol=1e-5)


def test_a_head_with_an_adapter_is_refused(tiny_folder):
    with pytest.raises(InputError, match="lora.targets: the vocabulary head"):
        load_policy(make_recipe(tiny_folder, *LORA, "lora.targets=[q_proj, lm_head]"))


# the reference


def test_defect_07_kl_is_on_when_its_weights_are_set(tiny_folder, tmp_path):
    for weights, names in ([KL, {"text", "speech"}], [["objective.kl.text=0", "objective.kl.speech=0.1"], {"speech"}]):
        run = tmp_path / str(len(names))
        trainer = Trainer(make_recipe(tiny_folder, "steps=1", *weights, run=run))
        perturb(trainer.raw_policy)
        metrics = []
        trainer.train(lambda _step, values, metrics=metrics: metrics.append(values))
        for name in ("text", "speech"):
            # a random answer need not hold tokens of both kinds
            measured = metrics[0].get(f"kl/{name}")
            assert (f"kl/{name}" in metrics[0]) == (name in names)
            assert measured is None or measured > 0
        assert sum(metrics[0].get(f"loss/kl_{name}", 0.0) for name in names) > 0


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_defect_07_the_reference_is_the_model_before_training_without_dropout(leaky_folder, overrides):
    recipe = make_recipe(leaky_folder, *KL, *overrides)
    policy = load_policy(recipe)
    reference = Reference(recipe, policy)
    batch = make_rows()
    expected = expected_logp(load_model(leaky_folder).model.eval(), 0.7)
    perturb(policy)
    policy.train()
    seen = []
    reference.policy.lm.trunk().register_forward_pre_hook(lambda module, _args: seen.append(module.training))
    for _ in range(3):
        assert torch.allclose(reference.logprobs(batch, 0.7), expected, atol=1e-5)
    assert seen and not any(seen)
    assert not torch.allclose(policy(batch, 0.7)[0], expected, atol=1e-3)  # the adapter is on again


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_the_reference_is_made_of_what_is_loaded(tiny_lm, tmp_path, overrides):
    """Of the network: no file is read again, and there is one codec."""
    tiny_lm.save(tmp_path / "model")
    recipe, batch = make_recipe(tmp_path / "model", *KL, *overrides), make_rows()
    policy = load_policy(recipe)
    shutil.rmtree(tmp_path / "model")
    reference = Reference(recipe, policy)
    assert torch.equal(reference.logprobs(batch, 1.0), policy(batch)[0])
    assert reference.policy.lm.codec is policy.lm.codec


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_every_weight_that_is_trained_has_a_gradient_whatever_is_scored(tiny_folder, overrides):
    policy = load_policy(make_recipe(tiny_folder, *overrides))
    trained = [p for p in policy.parameters() if p.requires_grad]
    scores = [policy(batch)[0] for batch in (make_rows(), make_rows(selected=False))]
    assert len(scores[0]) and len(scores[1]) == 0
    for score, moves in zip(scores, (True, False), strict=True):
        policy.zero_grad()
        score.sum().backward()
        assert any(p.grad.any() for p in trained) == moves
    with torch.no_grad():
        assert torch.equal(policy(make_rows())[0], scores[0])  # to the last bit


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_defect_07_nothing_turns_the_policys_dropout_on(leaky_folder, overrides):
    """Score equals sample before, after and in spite of the reference, also in train mode."""
    recipe = make_recipe(leaky_folder, *KL, *overrides, "gradient_checkpointing=true")
    policy, batch = load_policy(recipe), make_rows()
    first = policy(batch)[0]
    reference = Reference(recipe, policy)
    for _ in range(3):
        kl_per_token(recipe, policy, batch, reference)
        assert torch.equal(policy(batch)[0], first)


def test_the_reference_gives_the_adapter_back_to_training(tiny_folder):
    recipe = make_recipe(tiny_folder, *KL, *LORA)
    policy, batch = load_policy(recipe), make_rows()
    perturb(policy)
    logp, kl = kl_per_token(recipe, policy, batch, Reference(recipe, policy))
    (logp.sum() + kl.sum()).backward()
    adapters = {name: p for name, p in policy.named_parameters() if "lora_" in name}
    assert adapters and all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    assert all(p.grad is None for name, p in policy.named_parameters() if name not in adapters)


# what is saved


def test_the_saved_model_of_a_lora_run_gives_the_same_logits(tiny_folder, tmp_path):
    trainer = Trainer(make_recipe(tiny_folder, *LORA, "optim.lr=0.01", run=tmp_path / "run"))
    trainer.train()
    loaded, batch = load_model(trainer.save_model()), make_rows()
    assert not hasattr(loaded.model, "peft_config")
    ours, theirs = (Policy(lm)(batch)[0] for lm in (trainer.lm, loaded))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, Policy(load_model(tiny_folder))(batch)[0], atol=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", local_files_only=True)
    assert torch.allclose(expected_logp(plain), ours, atol=1e-5)


# options


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(tiny_folder, overrides):
    gradients, widths = [], []
    for checkpointing in ("false", "true"):
        recipe = make_recipe(tiny_folder, *overrides, f"gradient_checkpointing={checkpointing}")
        policy, batch = load_policy(recipe), make_rows()
        if overrides:
            perturb(policy)
        sample_groups(policy.lm, [torch.tensor([30, 31])], [[1, 2]], Sampling(4))  # leaves the mode as it was
        seen: list[int] = []
        policy.lm.trunk().layers[0].mlp.register_forward_pre_hook(
            lambda _module, inputs, seen=seen: seen.append(inputs[0].shape[1])
        )
        policy(batch)[0].sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
        widths.append(seen)
    assert widths == [[5, 3], [9, 9]]  # prompts, then answers; with checkpointing all of it, twice
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() < 1e-5 * gradient.norm(), name


# bfloat16: the trunk computes in it, what is trained is float32


BFLOAT16 = ["dtype=bfloat16"]
SUPERVISED = ["objective.mixing={kind: fixed, value: 0}", "objective.kl.text=0", "objective.kl.speech=0"]


def moves(model: Path, run: Path, *overrides: str) -> torch.Tensor:
    """What a supervised run adds to every trained weight."""
    trainer = Trainer(make_recipe(model, *SUPERVISED, "optim.schedule=constant", *overrides, run=run))
    trained = [parameter for parameter in trainer.raw_policy.parameters() if parameter.requires_grad]
    before = [parameter.detach().double() for parameter in trained]
    trainer.train()
    return torch.cat([(new.detach() - old).flatten() for new, old in zip(trained, before, strict=True)])


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_bfloat16_moves_weights_as_float32_does_at_a_small_learning_rate(tiny_folder, tmp_path, overrides):
    """In bfloat16 weights a step of 1e-6 would vanish: at 0.02 their next value is 1e-4 away."""
    small = [*overrides, "optim.lr=1e-6", "rollout.prompts_per_step=8"]
    expected = moves(tiny_folder, tmp_path / "float32", *small)
    ours = moves(tiny_folder, tmp_path / "bfloat16", *small, *BFLOAT16)
    moved = expected.abs() > 5e-7  # words that no row holds stay where they are
    assert moved.double().mean() > 0.3
    assert (ours[moved].abs() > 1e-7).double().mean() > 0.99
    assert torch.corrcoef(torch.stack([expected, ours]))[0, 1] > 0.98
    assert ours.norm() == pytest.approx(float(expected.norm()), rel=0.01)


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_bfloat16_sampler_and_policy_agree(speaking_lm, tmp_path, overrides):
    speaking_lm.save(tmp_path)
    policy = load_policy(make_recipe(tmp_path, *overrides, *BFLOAT16))
    types = {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad}
    assert types == {torch.float32}
    frozen = {parameter.dtype for parameter in policy.parameters() if not parameter.requires_grad}
    assert frozen == ({torch.bfloat16} if overrides else set())
    perturb(policy)
    computed = []
    layer = policy.lm.trunk().layers[1].mlp.down_proj
    layer.register_forward_hook(lambda _module, _inputs, output: computed.append(output.dtype))
    rollouts = [row[0] for row in sample_groups(policy.lm, PROMPTS, [[1], [2]], Sampling(30))]
    sampled = len(computed)
    mask = torch.nn.utils.rnn.pad_sequence([r.tokens.action for r in rollouts], batch_first=True)
    batch = make_batch(PROMPTS, [r.tokens for r in rollouts], mask, "cpu")
    logp = policy(batch)[0]
    assert len(computed) > sampled and set(computed) == {torch.bfloat16}
    assert logp.dtype == torch.float32
    said = torch.cat([r.logprob[r.tokens.action] for r in rollouts])
    assert (logp - said).abs().max() < 1e-3


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_bfloat16_kl_is_zero_before_training(tiny_folder, overrides, estimator):
    recipe = make_recipe(tiny_folder, *KL, *overrides, f"objective.kl.estimator={estimator}", *BFLOAT16)
    policy, batch = load_policy(recipe), make_rows()
    reference = Reference(recipe, policy)
    assert not kl_per_token(recipe, policy, batch, reference)[1].any()
    perturb(policy)
    assert kl_per_token(recipe, policy, batch, reference)[1].mean() > 1e-3


@pytest.mark.parametrize("overrides", [[], LORA, ["objective.kl.estimator=exact"]], ids=["full", "lora", "exact"])
def test_bfloat16_resumes_byte_for_byte(tiny_folder, tmp_path, overrides):
    every = [*KL, *overrides, *BFLOAT16, "optim.schedule=constant", "checkpoint.every=1"]
    Trainer(make_recipe(tiny_folder, *every, "steps=1", run=tmp_path / "cut")).train()
    resumed = Trainer(make_recipe(tiny_folder, *every, run=tmp_path / "cut"), resume=True)
    assert resumed.step == 1
    resumed.train()
    lines = []
    Trainer(make_recipe(tiny_folder, *every, run=tmp_path / "whole")).train(lambda _, values: lines.append(values))
    assert len(lines) == 2 and torch.isfinite(torch.tensor([line["loss/total"] for line in lines])).all()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        cut, whole = (tmp_path / run / "checkpoints/step-2" / name for run in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes(), name
    saved = load_file(tmp_path / "whole/checkpoints/step-2/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("overrides", [[], LORA], ids=["full", "lora"])
def test_bfloat16_activations_are_recomputed_as_they_were(tiny_folder, overrides):
    """Checkpointed or not: the same bits, when both run every answer behind its own prompt."""
    gradients = []
    for checkpointing in ("false", "true"):
        recipe = make_recipe(tiny_folder, *overrides, *BFLOAT16, f"gradient_checkpointing={checkpointing}")
        policy, batch = Policy(load_policy(recipe).lm, share_prompts=False), make_rows()
        perturb(policy)
        policy(batch)[0].sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient.any() for gradient in gradients[1].values())


# freezing


def test_defect_13_what_the_recipe_freezes_is_frozen(tiny_folder, tmp_path):
    overrides = [r"freeze=[embed_tokens, 'layers\.1\.mlp']", *KL]
    trainer = Trainer(make_recipe(tiny_folder, *overrides, run=tmp_path / "run"))
    before = copy.deepcopy(dict(trainer.raw_policy.network.named_parameters()))
    trainer.train()
    frozen = {name for name in before if re.search(r"embed_tokens|layers\.1\.mlp", name)}
    assert len(frozen) == 4
    for name, parameter in trainer.raw_policy.network.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        assert torch.equal(parameter, before[name]) == (name in frozen), name
    saved = load_model(trainer.save_model()).model
    assert all(torch.equal(dict(saved.named_parameters())[name], before[name]) for name in frozen)
    again = Trainer(make_recipe(tiny_folder, *overrides, run=tmp_path / "run"), resume=True)
    for name, parameter in again.raw_policy.network.named_parameters():
        assert torch.equal(parameter, dict(trainer.raw_policy.network.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["freeze=[audio_tower]"], "freeze: 'audio_tower' is in no parameter's name"),
        (["freeze=[embed_tokens, audio_tower]"], "freeze: 'audio_tower' is in no parameter's name"),
        (["freeze=['.']"], "freeze: no parameter is left to train"),
        (["freeze=['(']"], "freeze.0: input should be a valid regular expression"),
        (["freeze=[embed_tokens]", *LORA], "freeze: lora trains its adapters only"),
    ],
)
def test_defect_13_freezing_nothing_is_an_error(tiny_folder, overrides, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_policy(make_recipe(tiny_folder, *overrides))
    assert len(str(caught.value).splitlines()) == 1
