"""How processes share one network: each has all of it (DDP), or they divide it or the optimiser's work on it (FSDP2,
DeepSpeed).

Of FSDP2 there are two ways, which `fsdp_reshard_after_forward` of the launch tells apart:

    false   the network is one unit. Every process samples, scores and differentiates with whole weights, as in DDP, and
            holds a part of the gradient, of the optimiser's moments and of the weights they change. One reduce-scatter
            ends an update's last backward, one all-gather follows the optimiser's step; nothing else is exchanged.
    true    each layer is a unit of its own, whose weights, frozen ones too, are whole only while it runs, forwards or
            backwards; what is no layer is whole from a forward to the end of its backward. So processes must run the
            same layers in the same order: an update has equally many passes everywhere (`most`), each goes once through
            each layer and back. Whoever runs the network without a gradient as often as it likes, above all to sample,
            has whole weights for that time (`whole_weights`).

DeepSpeed (zero.py) does the same two things its own way, ZeRO-2 the first and ZeRO-3 the second. With both an update
has equally many passes everywhere: gradients are exchanged in each backward.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from elocute.errors import InputError
from elocute.recipe.schema import Recipe
from elocute.training.zero import LayersInParts, ZeroOptimizer, divide_frozen

_FSDP = {
    "FSDP_VERSION": ("2",),
    "FSDP_RESHARD_AFTER_FORWARD": ("false", "true"),
    "FSDP_OFFLOAD_PARAMS": ("false", ""),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", ""),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("",),
}
"""What `accelerate launch` hands on of a config's fsdp_…, and what is supported of it."""
_ZERO = {
    "DEEPSPEED_ZERO_STAGE": (("2", "3"), "launch/ddp.yaml divides nothing"),
    "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (("none",), "moments stay on the device"),
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": (("none",), "weights stay on the device"),
    "GRADIENT_CLIPPING": (("none",), "optim.clip_norm of the recipe says it"),
    "DEEPSPEED_ZERO3_INIT": (("false",), "a process loads the whole model"),
    "DEEPSPEED_CONFIG_FILE": (("",), "the recipe says what it would"),
}
"""The same of a config's deepspeed_config: what is supported, and why nothing else."""
_RECIPE = {
    "MIXED_PRECISION": ("no", "dtype of the recipe says it"),
    "GRADIENT_ACCUMULATION_STEPS": ("1", "optim.micro_batch of the recipe cuts an update into passes"),
}
"""What any launch may say and the recipe says better."""
_WRAP = {"false": "NO_WRAP", "true": "TRANSFORMER_BASED_WRAP"}
"""FSDP_AUTO_WRAP_POLICY that goes with FSDP_RESHARD_AFTER_FORWARD."""
_SETTLING_SECONDS = 1.0


def check_launch(*, served: bool = False) -> None:
    """InputError where the launcher asks for a way of sharing that is not this one. served: vLLM samples."""
    for name, (value, why) in _RECIPE.items():
        if (said := os.environ.get(f"ACCELERATE_{name}", value)) != value:
            raise InputError(f"{name.lower()}: expected {value}, got {said!r}: {why}")
    zero = _asked("ACCELERATE_USE_DEEPSPEED")
    if not zero and not _asked("ACCELERATE_USE_FSDP"):
        return
    if served:  # it is given the network's weights as a file, and what is divided writes parts
        raise InputError(f"rollout.vllm: expected none with {'DeepSpeed' if zero else 'FSDP2'}")
    if zero:
        for name, (values, why) in _ZERO.items():
            said = os.environ.get(f"ACCELERATE_{name}", values[0])
            if said.lower() not in values:
                expected = " or ".join(value or "none" for value in values)
                key = name.lower().removeprefix("deepspeed_") if values[0] else name.lower()
                raise InputError(f"{key}: expected {expected}, as in launch/zero….yaml, got {said!r}: {why}")
        if not _deepspeed().startswith("0.19."):
            raise InputError("distributed_type: DEEPSPEED needs DeepSpeed 0.19: pip install 'elocute[deepspeed]'")
        if "RANK" not in os.environ:
            raise InputError("distributed_type: DEEPSPEED expects a start by accelerate launch or torchrun")
        return
    known = _FSDP | {"FSDP_AUTO_WRAP_POLICY": (_WRAP.get(os.environ.get("FSDP_RESHARD_AFTER_FORWARD")), "")}
    for name, values in known.items():
        said = os.environ.get(name, "")
        if said not in values:
            expected = " or ".join(value or "none" for value in values if value or len(values) == 1)
            raise InputError(f"{name.lower()}: expected {expected}, as in launch/fsdp2…yaml, got {said!r}")


def sharing() -> str:
    """The way this launch asks for: copies, unit (FSDP2 as one), layers (FSDP2 layer by layer), zero2, zero3."""
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        return "zero" + os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if not _asked("ACCELERATE_USE_FSDP"):
        return "copies"
    return "layers" if _asked("FSDP_RESHARD_AFTER_FORWARD") else "unit"


def divides_layers(way: str) -> bool:
    """way: as `sharing` says it."""
    return way in ("layers", "zero3")


def shares_prompts(recipe: Recipe, way: str) -> bool:
    """Whether a pass runs a prompt once for all its answers. way: as `sharing` says it.

    Gradient checkpointing keeps no keys and values, and divided layers are run once there and back.
    """
    return not recipe.gradient_checkpointing and not divides_layers(way)


def make_accelerator(**options) -> Accelerator:
    """accelerate, which is told of processes and devices alone: what is here does the sharing, on CPUs too."""
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="false"):
        return Accelerator(**options)


def disband() -> None:
    """End the group of processes, if there is one: with gloo, torch aborts a process that ends while it is in it."""
    if torch.distributed.is_initialized():
        # gloo's threads may still want the interpreter's lock, to let go of the last tensors; whoever destroys the
        # group holds that lock while it waits for them, for ever.
        time.sleep(_SETTLING_SECONDS)
        torch.distributed.destroy_process_group()


def share(policy: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """A policy, which is on its device, as this launch's processes share it: what is called where a gradient is wanted.

    A reference, of which nothing is trained, is divided where layers are, else each process has all of it.
    """
    way = sharing() if torch.distributed.is_initialized() else "copies"
    frozen = {parameter for parameter in policy.parameters() if not parameter.requires_grad}
    untrained = len(frozen) == len(list(policy.parameters()))
    if way == "zero3" and untrained:
        divide_frozen(policy)
    if way.startswith("zero") or untrained and way != "layers":
        return policy  # what is trained becomes DeepSpeed's with its optimiser
    if way == "copies":
        return accelerator.prepare(policy)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    if way == "layers":
        for layer in policy.lm.layers():
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        policy.lm.divided, frozen = True, None
    fully_shard(policy, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
    if way == "unit":
        policy.set_reshard_after_backward(False)
        policy.unshard()
    else:
        register_fsdp_forward_method(policy, "states")
        policy.first = lambda: None  # of FSDP2's modules the first that runs is the root; sampling runs layers
        register_fsdp_forward_method(policy, "first")
        policy.first()
        policy.reshard()
    return policy


@contextlib.contextmanager
def at_rest(policy: torch.nn.Module) -> Iterator[None]:
    """Inside, the parameters are what optimiser and checkpoints know: a process's parts of divided ones (FSDP2), or
    whole ones, and what is loaded into them stays (ZeRO-3); all must come here."""
    if divided := _layers_in_parts(policy):
        with divided.whole(changed=True):
            yield
        return
    if not isinstance(policy, FSDPModule):
        yield
        return
    policy.reshard()
    yield
    if not _layers(policy):
        policy.unshard()  # not after an error, of which the other processes may know nothing


@contextlib.contextmanager
def whole_weights(policy: torch.nn.Module) -> Iterator[None]:
    """Inside, weights are whole, and a process runs the network without a gradient as it likes; all must come here."""
    if divided := _layers_in_parts(policy):
        with divided.whole():
            yield
        return
    layers = _layers(policy)
    for part in (policy, *layers) if layers else ():
        part.unshard()
    for layer in layers:
        layer.set_reshard_after_forward(False)
    yield
    for layer in layers:
        layer.set_reshard_after_forward(True)
    settle(policy)


def settle(policy: torch.nn.Module) -> None:
    """Divided layers are parts again, and FSDP2 forgets which forwards there were: it would reckon with them."""
    if _layers(policy):
        policy.reset_iter_state()


def most(accelerator: Accelerator, count: int) -> int:
    """The largest of all processes' counts; all must come here."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


@contextlib.contextmanager
def synchronise(accelerator: Accelerator, policy: torch.nn.Module, last: bool) -> Iterator[None]:
    """Gradients are averaged over processes once, in the backward of the last micro-batch; in each those of divided
    layers, and with DeepSpeed all."""
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(last or bool(_layers(policy)))
        yield
    elif _is_engine(policy):
        policy.set_gradient_accumulation_boundary(last)
        yield
    else:
        with contextlib.nullcontext() if last else accelerator.no_sync(policy):
            yield


def backward(accelerator: Accelerator, policy: torch.nn.Module, loss: torch.Tensor) -> None:
    """Of this process's part of a loss that is the sum of all processes': their gradients are averaged."""
    (policy if _is_engine(policy) else accelerator).backward(loss * accelerator.num_processes)


def descend(policy: torch.nn.Module, optimizer: torch.optim.Optimizer | ZeroOptimizer, clip_norm: float) -> float:
    """Step along the clipped gradient, unless it is not finite; its norm before, of DeepSpeed's then infinite."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.step()
    with at_rest(policy):
        norm = float(whole(torch.nn.utils.clip_grad_norm_(policy.parameters(), clip_norm)))
        if math.isfinite(norm):
            optimizer.step()
            optimizer.zero_grad()
    return norm


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may have a part; then all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor that all of them have, divided as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _layers(policy: torch.nn.Module) -> list[FSDPModule]:
    """Those that are units of their own."""
    return [module for module in policy.modules() if isinstance(module, FSDPModule) and module is not policy]


def _layers_in_parts(policy: torch.nn.Module) -> LayersInParts | None:
    """DeepSpeed's, of a policy or its engine."""
    return getattr(policy, "layers_in_parts", None)


def _deepspeed() -> str:
    """The version that is installed; nothing where none is."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return ""


def _is_engine(policy: torch.nn.Module) -> bool:
    """Whether it is DeepSpeed's, which need not be installed."""
    return hasattr(policy, "set_gradient_accumulation_boundary")


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
