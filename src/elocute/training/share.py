"""How processes share one network: each has all of it (DDP), or the optimiser's work on it is divided (FSDP2).

FSDP2 has the network as one unit: every process samples, scores and differentiates with whole weights, as in DDP, and
holds a part of the gradient, of the optimiser's moments and of the weights they change. One reduce-scatter ends an
update's last backward, one all-gather follows the optimiser's step, and nothing else is exchanged, so processes may do
different numbers of forwards: answers end when they end, and a process may have no pair.
Left out: units within the network, which would free weights between forwards and ask all processes for equal ones.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from elocute.errors import InputError

_FSDP = {
    "FSDP_VERSION": ("2",),
    "FSDP_RESHARD_AFTER_FORWARD": ("false",),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", ""),
    "FSDP_OFFLOAD_PARAMS": ("false", ""),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", ""),
}
"""What `accelerate launch` hands on of a config's fsdp_…, and what is supported of it."""


def check_launch(*, served: bool = False) -> None:
    """InputError where the launcher asks for a way of sharing that is not this one. served: vLLM samples."""
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise InputError("distributed_type: DeepSpeed is not supported; launch/fsdp2.yaml shares as ZeRO-2 does")
    if not _asked("ACCELERATE_USE_FSDP"):
        return
    if served:  # it is given the network's weights as a file, and what is divided writes parts
        raise InputError("rollout.vllm: expected none with FSDP2")
    for name, known in _FSDP.items():
        said = os.environ.get(name, "")
        if said not in known:
            raise InputError(f"{name.lower()}: expected {known[0]}, as in launch/fsdp2.yaml, got {said!r}")


def make_accelerator(**options) -> Accelerator:
    """accelerate, which is told of processes and devices alone: what is here does the sharing, on CPUs too."""
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        return Accelerator(**options)


def share(policy: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """The policy on its device, as this launch's processes share it: what is called where a gradient is wanted."""
    if not _asked("ACCELERATE_USE_FSDP") or not torch.distributed.is_initialized():
        return accelerator.prepare(policy)
    policy.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    frozen = {parameter for parameter in policy.parameters() if not parameter.requires_grad}
    fully_shard(policy, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
    policy.set_reshard_after_backward(False)
    policy.unshard()
    return policy


@contextlib.contextmanager
def in_parts(policy: torch.nn.Module) -> Iterator[None]:
    """Inside, a policy's divided parameters are this process's parts, which the optimiser knows; all must come here."""
    if not isinstance(policy, FSDPModule):
        yield
        return
    policy.reshard()
    yield
    policy.unshard()  # not after an error, of which the other processes may know nothing


@contextlib.contextmanager
def synchronise(accelerator: Accelerator, policy: torch.nn.Module, last: bool) -> Iterator[None]:
    """Gradients are averaged over processes once, in the backward of the last micro-batch."""
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(last)
        yield
    else:
        with contextlib.nullcontext() if last else accelerator.no_sync(policy):
            yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may have a part; then all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor that all of them have, divided as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
