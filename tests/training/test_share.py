"""How processes share a network: what a launcher may ask for, and that parts are parts."""

import os
import subprocess
import sys

import pytest

from elocute.errors import InputError
from elocute.training.share import check_launch

PARTS = """
import torch
from accelerate import Accelerator
from elocute.training.share import in_parts, part_like, share, synchronise, whole

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
plain = torch.nn.Linear(3, 5)
before = {name: p.detach().clone() for name, p in plain.named_parameters()}
policy = share(plain, accelerator)
with in_parts(policy):
    assert [p.to_local().numel() for p in policy.parameters()] in ([9, 3], [6, 2])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
for index in range(1 + accelerator.process_index):  # unequal numbers of forwards
    with synchronise(accelerator, policy, index == accelerator.process_index):
        policy(torch.ones(1, 3)).sum().backward()
with in_parts(policy):
    assert (whole(policy.weight.grad) == 1.5).all()  # the mean over both: one forward here, two there
    optimizer.step()
    moment = optimizer.state[policy.weight]["exp_avg"]
    assert moment.to_local().shape == policy.weight.to_local().shape
    assert torch.equal(part_like(whole(moment), policy.weight).to_local(), moment.to_local())
assert type(policy.weight) is torch.nn.Parameter and policy.weight.shape == (5, 3)
assert torch.allclose(before["weight"] * 0.999 - 0.1, policy.weight, atol=1e-6)
"""


def test_with_fsdp2_a_process_holds_its_part_while_the_optimiser_steps_and_all_of_it_otherwise(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    asked = {"ACCELERATE_USE_FSDP": "true", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*words, tmp_path / "parts.py"], env=os.environ | asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"),
        ("FSDP_RESHARD_AFTER_FORWARD", "true"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
    ],
)
def test_what_is_not_supported_of_fsdp_is_one_clear_line(name, value, monkeypatch):
    for key, said in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
    }.items():
        monkeypatch.setenv(key, said)
    check_launch()
    with pytest.raises(InputError, match="^rollout.vllm: expected none with FSDP2$"):
        check_launch(served=True)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name.lower()}: expected .*, as in launch/fsdp2.yaml, got '{value}'$"):
        check_launch()
