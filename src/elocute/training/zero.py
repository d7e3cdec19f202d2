"""DeepSpeed: processes divide the optimiser's work and have whole weights (ZeRO-2), or divide the layers, too (ZeRO-3).

DeepSpeed adds gradients up in the order in which each process has them ready, and does not look whether they are the
same weight's. Here they are: divided layers run in one order anyhow, and every other weight is also in the result,
times 0, so that its gradient is whole only at the end of the backward pass, in one order everywhere (`Policy.forward`),
whatever of the network the micro-batch ran; and an update has equally many passes everywhere (share.py). Moments are
whole tensors in checkpoints, as those of any other way.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch

BUCKET = 50_000_000
"""Numbers of gradients that are exchanged at once, at most."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroOptimizer:
    """AdamW whose work DeepSpeed divides; `engine` is the policy to call where a gradient is wanted.

    What it shares with torch's optimisers is what training and checkpoints use of them. All processes must come along.
    """

    def __init__(self, policy: torch.nn.Module, adamw: torch.optim.AdamW, clip_norm: float, *, layers: bool):
        """layers: divide those as well."""
        self.adamw, self._layers = adamw, layers
        self.parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        stage = 3 if layers else 2
        self.engine = _initialize(policy, stage, {"gradient_clipping": clip_norm}, optimizer=adamw)
        self._utils = import_module("deepspeed.utils")
        if layers:
            policy.layers_in_parts = LayersInParts(policy, self.engine.optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Learning rate and the like; their parameters are DeepSpeed's own."""
        return self.adamw.param_groups

    def step(self) -> float:
        """Along the clipped gradient, which is forgotten then; its norm before clipping."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """As AdamW's over whole parameters, in main memory; on the first process only."""
        [step] = {float(state["step"]) for state in self.adamw.state.values()}
        state = {
            index: {"step": torch.tensor(step)} | {name: self._whole(parameter, name) for name in _MOMENTS}
            for index, parameter in enumerate(self.parameters)
        }
        [group] = self.param_groups
        return {"state": state, "param_groups": [group | {"params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        """After the parameters have been put back."""
        inner = self.engine.optimizer
        if not self._layers:
            inner.refresh_fp32_params()
        # DeepSpeed knows moments from the first step on; until then they are made as that step makes them.
        for part in inner.fp32_partitioned_groups_flat if self._layers else self.param_groups[0]["params"]:
            self.adamw.state[part] = {"step": given["state"][0]["step"].clone()}
            self.adamw.state[part] |= {name: torch.zeros_like(part) for name in _MOMENTS}
        if not self._layers:
            inner._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self.parameters):
            for name in _MOMENTS:
                self._put(parameter, given["state"][index][name].to(parameter.device), name)
        self.param_groups[0].update({k: v for k, v in given["param_groups"][0].items() if k != "params"})

    def _whole(self, parameter: torch.nn.Parameter, name: str) -> torch.Tensor:
        value = self._utils.safe_get_full_optimizer_state(parameter, name)
        return value.cpu() if self.engine.global_rank == 0 else torch.empty(0)

    def _put(self, parameter: torch.nn.Parameter, value: torch.Tensor, name: str) -> None:
        if not self._layers:
            self._utils.safe_set_full_optimizer_state(parameter, value, name)
            return
        # DeepSpeed's own way for whole values (0.19) finds none for the last process where parts are not all equal.
        size = parameter.ds_tensor.ds_numel
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.engine.dp_world_size - value.numel()))
        own = padded[size * self.engine.global_rank :][:size]
        self._utils.safe_set_local_optimizer_state(parameter, own, name)


class LayersInParts:
    """A network whose layers ZeRO-3 divides: each of their modules has whole weights while it runs, there or back.

    What is in no layer stays whole: heads and embeddings are read where no module is called, and not every process
    runs a talker in every pass. So DeepSpeed watches the layers alone, which all run in one order.
    """

    def __init__(self, policy: torch.nn.Module, optimizer):
        """optimizer: DeepSpeed's, or what it has in its place where nothing is trained."""
        self._optimizer, self._offload = optimizer, getattr(optimizer, "parameter_offload", optimizer)
        self._layers = policy.lm.layers()
        within = {parameter for layer in self._layers for parameter in layer.parameters()}
        self._within = [parameter for parameter in policy.parameters() if parameter in within]
        self._kept = [parameter for parameter in policy.parameters() if parameter not in within]
        policy.lm.divided = True
        optimizer.persistent_parameters = self._kept  # whole again after a step
        self._offload.fwd_pre_hook.remove()
        self._unwatch()
        _gather(self._kept)
        self._watch()

    @contextlib.contextmanager
    def whole(self, *, changed: bool = False) -> Iterator[None]:
        """Inside, all weights are whole and nobody watches. changed: they may be given others, the same everywhere."""
        self._unwatch()
        _gather(self._within)
        yield
        weights = self._within + self._kept * changed
        weights[0].partition(weights, has_been_updated=changed)
        if changed:
            _gather(self._kept)
            self._optimizer.refresh_fp32_params()
        self._watch()

    def _watch(self) -> None:
        number = [0]  # modules are told apart by it, and only a module's own get another
        for layer in self._layers:
            number[0] += 1
            self._offload._register_deepspeed_module(layer, number)

    def _unwatch(self) -> None:
        for hook in (*self._offload.forward_hooks, *self._offload.backward_hooks):
            hook.remove()
        self._offload.forward_hooks, self._offload.backward_hooks = [], []
        for parameter in self._within:
            parameter.ds_active_sub_modules.clear()


def divide_frozen(policy: torch.nn.Module) -> None:
    """ZeRO-3 of a policy of which nothing is trained."""
    policy.layers_in_parts = LayersInParts(policy, _initialize(policy, 3, {}).optimizer)


def _gather(parameters: list[torch.nn.Parameter]) -> None:
    if parameters:
        parameters[0].all_gather(parameters)


def _initialize(policy: torch.nn.Module, stage: int, config: dict[str, Any], **options):
    """DeepSpeed's engine of a policy."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)  # what DeepSpeed calls
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    zero = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": max(1, min(BUCKET, trained))}
    if stage == 3:  # nothing stays whole for being small, nor is gathered ahead, which needs one order of everything
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
    config |= {
        "train_micro_batch_size_per_gpu": 1,  # the losses are sums already
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    with contextlib.redirect_stdout(sys.stderr):  # a result may go to stdout
        deepspeed = import_module("deepspeed")
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # of a gradient that is not finite we say it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on CPUs it would be compiled, and is not used
        return deepspeed.initialize(model=policy, config=config, **options)[0]
