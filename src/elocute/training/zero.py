"""DeepSpeed's ZeRO-2: every process has whole weights and a part of the optimiser's work.

DeepSpeed adds gradients up in the order in which each process has them ready, and does not look whether they are the
same weight's. Here they are: a part of 0 of every weight's gradient is what a backward pass does last, in one order
(`Policy.forward`), whatever of the network the micro-batch ran; and an update has equally many passes everywhere
(share.py). Moments are whole tensors in checkpoints, as those of any other way.
"""

import contextlib
import logging
import os
import sys
from importlib import import_module
from typing import Any

import torch

_BUCKET = 50_000_000
"""Numbers of gradients that are exchanged at once."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroOptimizer:
    """AdamW whose work DeepSpeed divides; `engine` is the policy to call where a gradient is wanted.

    What it shares with torch's optimisers is what training and checkpoints use of them. All processes must come along.
    """

    def __init__(self, policy: torch.nn.Module, adamw: torch.optim.AdamW, clip_norm: float):
        deepspeed = _deepspeed()
        self.adamw, self._utils = adamw, import_module("deepspeed.utils")
        self.parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        config = {
            "train_micro_batch_size_per_gpu": 1,  # the losses are sums already
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": _BUCKET},
        }
        with contextlib.redirect_stdout(sys.stderr):  # a result may go to stdout
            self.engine = deepspeed.initialize(model=policy, optimizer=adamw, config=config)[0]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Learning rate and the like; their parameters are DeepSpeed's own."""
        return self.adamw.param_groups

    def step(self) -> float:
        """Along the clipped gradient, which is forgotten then; its norm before clipping."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """As AdamW's over whole parameters."""
        [step] = {float(state["step"]) for state in self.adamw.state.values()}
        state = {
            index: {"step": torch.tensor(step)}
            | {name: self._utils.safe_get_full_optimizer_state(parameter, name) for name in _MOMENTS}
            for index, parameter in enumerate(self.parameters)
        }
        [group] = self.param_groups
        return {"state": state, "param_groups": [group | {"params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        """After the parameters have been put back."""
        inner = self.engine.optimizer
        inner.refresh_fp32_params()
        [part] = self.param_groups[0]["params"]
        # DeepSpeed knows moments from the first step on; until then they are made as that step makes them.
        self.adamw.state[part] = {"step": given["state"][0]["step"].clone()}
        self.adamw.state[part] |= {name: torch.zeros_like(part) for name in _MOMENTS}
        inner._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self.parameters):
            for name in _MOMENTS:
                value = given["state"][index][name].to(parameter.device)
                self._utils.safe_set_full_optimizer_state(parameter, value, name)
        self.param_groups[0].update({k: v for k, v in given["param_groups"][0].items() if k != "params"})


def _deepspeed():
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        return import_module("deepspeed")
