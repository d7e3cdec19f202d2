"""How processes share a network: what a launcher may ask for, and that parts are parts."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elocute.errors import InputError
from elocute.recipe import load_recipe
from elocute.training import share as share_module
from elocute.training.policy import load_policy
from elocute.training.share import check_launch, sharing

PARTS = """
import torch
from accelerate import Accelerator
from elocute.training.share import at_rest, disband, part_like, share, synchronise, whole

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
plain = torch.nn.Linear(3, 5)
before = {name: p.detach().clone() for name, p in plain.named_parameters()}
policy = share(plain, accelerator)
with at_rest(policy):
    assert [p.to_local().numel() for p in policy.parameters()] in ([9, 3], [6, 2])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
for index in range(1 + accelerator.process_index):  # unequal numbers of forwards
    with synchronise(accelerator, policy, index == accelerator.process_index):
        policy(torch.ones(1, 3)).sum().backward()
with at_rest(policy):
    assert (whole(policy.weight.grad) == 1.5).all()  # the mean over both: one forward here, two there
    optimizer.step()
    moment = optimizer.state[policy.weight]["exp_avg"]
    assert moment.to_local().shape == policy.weight.to_local().shape
    assert torch.equal(part_like(whole(moment), policy.weight).to_local(), moment.to_local())
assert type(policy.weight) is torch.nn.Parameter and policy.weight.shape == (5, 3)
assert torch.allclose(before["weight"] * 0.999 - 0.1, policy.weight, atol=1e-6)
accelerator.wait_for_everyone()
disband()
"""


ZERO3 = """
import sys

import torch
from elocute.models.batch import make_batch
from elocute.models.layout import Tokens
from elocute.recipe import load_recipe
from elocute.training.policy import load_policy
from elocute.training.share import at_rest, disband, make_accelerator, whole_weights
from elocute.training import zero
from elocute.training.zero import ZeroOptimizer, divide_frozen

zero.BUCKET = 3000  # so that gradients are exchanged in several
accelerator = make_accelerator(cpu=True)
recipe = load_recipe("recipes/starter/wavalign.yaml", [f"model={sys.argv[1]}", "run_dir=unused"])
policy, frozen = load_policy(recipe), load_policy(recipe).requires_grad_(False)
before = [weight.clone() for weight in policy.parameters()]
optimizer = ZeroOptimizer(policy, torch.optim.AdamW(policy.parameters(), lr=0.1), 1.0, layers=True)
divide_frozen(frozen)
layers = [weight for of in (policy, frozen) for layer in of.lm.layers() for weight in layer.parameters()]

def whole():
    return [weight.numel() > 0 for weight in layers]

assert not any(whole()) and policy.lm.head().weight.numel() and frozen.lm.head().weight.numel()
for of in (policy, frozen):
    with torch.no_grad(), whole_weights(of):
        assert all(map(torch.equal, before, of.parameters()))
        of.lm.trunk()(input_ids=torch.tensor([[40, 41]]))
assert not any(whole())
frozen.lm.trunk()(input_ids=torch.tensor([[40, 41]]))  # a layer is whole for as long as it runs
assert not any(whole())
assert any(weight.ds_numel % 3 for weight in policy.parameters())  # parts are not all equal
with at_rest(policy):
    for place, weight in enumerate(policy.parameters()):
        weight.data.add_(place)
    moments = {"exp_avg": torch.neg, "exp_avg_sq": torch.square}
    state = {place: {"step": torch.tensor(3.0)} | {name: made(of) for name, made in moments.items()}
             for place, of in enumerate(before)}
    [group] = optimizer.param_groups
    optimizer.load_state_dict({"state": state, "param_groups": [group | {"lr": 0.0}]})
    found = optimizer.state_dict()
for place, weight in enumerate(before):
    assert found["state"][place]["step"] == 3
    for name, made in moments.items():
        kept = found["state"][place][name]  # whole on the first process, else nothing
        assert not kept.numel() if accelerator.process_index else torch.equal(kept.view_as(weight), made(weight))
assert sum(state["exp_avg"].numel() for state in optimizer.adamw.state.values()) < 0.34 * sum(map(torch.numel, before))
ids, every = torch.arange(40, 44), torch.ones(4, dtype=torch.bool)
logp, _ = optimizer.engine(make_batch([ids], [Tokens(ids, every, every)], every[None], "cpu"))
optimizer.engine.backward(logp.sum())
optimizer.step()  # at a rate of 0: the weights are those that were given
with whole_weights(policy):
    for place, (weight, old) in enumerate(zip(policy.parameters(), before)):
        assert torch.equal(weight, old + place), (place, weight - old)
disband()
"""


LAYERS = """
import sys
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from safetensors.torch import save_file
from elocute.models.layout import Tokens
from elocute.recipe import load_recipe
from elocute.training.policy import Reference, load_policy
from elocute.training.share import at_rest, disband, share, whole, whole_weights
from elocute.training.update import Rows, Update

recipe = load_recipe("recipes/starter/wavalign.yaml", [f"model={sys.argv[1]}", "run_dir=unused", *sys.argv[3:]])
soon = InitProcessGroupKwargs(timeout=timedelta(minutes=5))  # after which who waits for another waits in vain
accelerator = Accelerator(cpu=True, kwargs_handlers=[soon])
policy = load_policy(recipe)
reference, numbers = Reference(recipe, policy), torch.Generator().manual_seed(0)
with torch.no_grad():
    for parameter in policy.parameters():
        parameter += 0.02 * parameter.requires_grad * torch.randn(parameter.shape, generator=numbers)
shared = [share(of, accelerator) for of in {id(of): of for of in (policy, reference.policy)}.values()]

def rows(count):
    ids = [torch.randint(30, 280, (2 + 3 * row,), generator=numbers) for row in range(count)]
    every = [torch.ones_like(of, dtype=torch.bool) for of in ids]
    rows = Rows.of([torch.randint(30, 280, (5,), generator=numbers) for _ in ids], list(map(Tokens, ids, every, every)))
    rows.advantage, rows.sampler_logp = torch.arange(count) - 1.0, rows.padded.action * -6.0
    return rows

def part(rows, places):
    mine = Rows.of([rows.prompts[i] for i in places], [rows.answers[i] for i in places])
    mine.advantage, mine.sampler_logp = rows.advantage[places], rows.sampler_logp[places, : mine.padded.ids.shape[1]]
    return mine

shares = [range(6)] if accelerator.num_processes == 1 else [range(1), range(1, 6)]  # unequal numbers of passes
rank = accelerator.process_index
rollouts, targets = (part(rows(6), list(shares[place])) for place in (rank, -rank - 1))
update = Update(recipe, policy, reference, accelerator)
with whole_weights(policy):
    before = [p.detach().clone() for p in policy.parameters()]
    for _ in range(rank):  # unequal numbers of forwards
        policy.lm.trunk()(input_ids=torch.tensor([[40, 41]]))
for _ in range(2):
    update.score_before(rollouts)
    update(rollouts, targets, 0.3)
with at_rest(policy):
    if accelerator.num_processes == 2:
        halves = [p.to_local().numel() / p.numel() for p in (*policy.parameters(), *reference.policy.parameters())]
        assert 0.4 < sum(halves) / len(halves) < 0.6
    found = {name: whole(p.grad).contiguous() for name, p in policy.named_parameters() if p.requires_grad}
with whole_weights(policy):
    assert all(map(torch.equal, before, policy.parameters()))
if accelerator.is_main_process:
    save_file(found, sys.argv[2])
accelerator.wait_for_everyone()
disband()
"""


def start(script: Path, *words: str, processes: int, **asked: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | asked
    done = subprocess.run([*launcher, script, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_with_fsdp2_a_process_holds_its_part_while_the_optimiser_steps_and_all_of_it_otherwise(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    start(tmp_path / "parts.py", processes=2, ACCELERATE_USE_FSDP="true")


@pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: make deepspeed")
def test_with_zero3_a_process_holds_its_part_of_the_layers_and_of_a_reference_unless_whole_ones_are_asked_for(
    tiny_folder, tmp_path
):
    (tmp_path / "zero3.py").write_text(ZERO3)
    start(tmp_path / "zero3.py", tiny_folder, processes=3)


@pytest.mark.parametrize("overrides", [["objective.kl.estimator=exact"], ["lora.rank=4"]], ids=" ".join)
def test_layer_by_layer_unequal_processes_have_the_gradient_of_one(tiny_lm, tmp_path, overrides):
    (tmp_path / "layers.py").write_text(LAYERS)
    tiny_lm.save(tmp_path / "model")
    words = ["data.eval=null", "objective.kl={text: 0.7, speech: 0.4}", "optim.micro_batch=1", *overrides]
    for processes in (1, 2):
        asked = {"FSDP_RESHARD_AFTER_FORWARD": "true", "ACCELERATE_USE_FSDP": str(processes > 1)}
        file = tmp_path / str(processes)
        start(tmp_path / "layers.py", tmp_path / "model", file, *words, processes=processes, **asked)
    one, two = (load_file(tmp_path / str(processes)) for processes in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("reshard", "checkpointing", "shared"),
    [("false", "false", True), ("true", "false", False), ("false", "true", False)],
)
def test_divided_layers_are_run_once_a_pass_and_so_prompts_are_not_shared(
    tiny_folder, reshard, checkpointing, shared, monkeypatch
):
    """Nor with gradient checkpointing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", reshard)
    changes = [f"model={tiny_folder}", "run_dir=unused", f"gradient_checkpointing={checkpointing}"]
    assert load_policy(load_recipe("recipes/starter/wavalign.yaml", changes)).share_prompts is shared


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"),
        ("FSDP_RESHARD_AFTER_FORWARD", "2"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaMLP"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
    ],
)
@pytest.mark.parametrize(("reshard", "wrap"), [("false", "NO_WRAP"), ("true", "TRANSFORMER_BASED_WRAP")])
def test_what_is_not_supported_of_fsdp_is_one_clear_line(name, value, reshard, wrap, monkeypatch):
    for key, said in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": reshard,
    }.items():
        monkeypatch.setenv(key, said)
    check_launch()
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", wrap)
    check_launch()
    assert sharing() == ("layers" if reshard == "true" else "unit")
    with pytest.raises(InputError, match="^rollout.vllm: expected none with FSDP2$"):
        check_launch(served=True)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name.lower()}: expected .*, as in launch/fsdp2.*.yaml, got '{value}'$"):
        check_launch()


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        (
            "DEEPSPEED_ZERO_STAGE",
            "1",
            "zero_stage: expected 2 or 3, as in launch/zero….yaml, got '1': launch/ddp.yaml",
        ),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param_device: expected none"),
        ("GRADIENT_CLIPPING", "1.0", "gradient_clipping: expected none, .*, got '1.0': optim.clip_norm"),
        ("DEEPSPEED_ZERO3_INIT", "true", "zero3_init: expected false"),
        ("MIXED_PRECISION", "bf16", "mixed_precision: expected no, got 'bf16': dtype of the recipe"),
        ("GRADIENT_ACCUMULATION_STEPS", "8", "gradient_accumulation_steps: expected 1, got '8': optim.micro_batch"),
        ("DEEPSPEED_CONFIG_FILE", "ds.json", "deepspeed_config_file: expected none"),
    ],
)
def test_what_deepspeed_is_not_asked_for_is_one_clear_line(monkeypatch, name, said, message):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for installed in ("", "0.14.0"):
        monkeypatch.setattr(share_module, "_deepspeed", lambda installed=installed: installed)
        with pytest.raises(InputError, match=r"needs DeepSpeed 0.19: pip install 'elocute\[deepspeed\]'$"):
            check_launch()
    monkeypatch.setattr(share_module, "_deepspeed", lambda: "0.19.8")
    with pytest.raises(InputError, match="DEEPSPEED expects a start by accelerate launch or torchrun$"):
        check_launch()
    monkeypatch.setenv("RANK", "0")
    check_launch()
    assert sharing() == "zero2"
    with pytest.raises(InputError, match="^rollout.vllm: expected none with DeepSpeed$"):
        check_launch(served=True)
    monkeypatch.setenv(f"ACCELERATE_{name}", said)
    with pytest.raises(InputError, match=f"^{message}"):
        check_launch()
