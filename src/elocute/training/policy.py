"""The network that is trained, and its reference: teacher-forced log-probs of selected tokens."""

import contextlib
import copy
import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model

from elocute.errors import InputError
from elocute.models import SpeechLM, load_model
from elocute.models.batch import Batch, States
from elocute.objectives.kl import kl_k3
from elocute.objectives.logprobs import exact_kl, selected_logprobs
from elocute.recipe.schema import Dpo, Recipe
from elocute.training.share import shares_prompts, sharing


class Policy(torch.nn.Module):
    """A speech LM as a module whose forward is all that training needs, so that accelerate may wrap it.

    Dropout is off, always: the policy that scores must be the policy that sampled.
    """

    def __init__(self, lm: SpeechLM, *, share_prompts: bool = True):
        """share_prompts: run the prompt of a group once (`shares_prompts` of training/share.py)."""
        super().__init__()
        self.share_prompts = share_prompts
        self.network = lm.model
        self.lm = lm
        for module in self.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():  # attention_dropout, layerdrop … as plain numbers
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

    def states(self, batch: Batch) -> list[States]:
        """What predicts the selected cells, head by head."""
        return self.lm.states(batch, share_prompts=self.share_prompts)

    def forward(
        self,
        batch: Batch,
        temperature: float | Sequence[float] = 1.0,
        reference: Sequence[States] | None = None,
    ):
        """Log-probs of the selected cells [N]; with the `reference`'s states also KL(policy ‖ reference) [N].

        temperature: one, or one for each of the model's heads.
        The log-probs' gradient has a part, maybe 0, for every weight that is trained, whatever the cells depend on.
        """
        nothing = self._nothing()
        states, each = self.lm.states(batch, share_prompts=self.share_prompts), self.lm.temperatures(temperature)
        logp = _joined(states, [
            selected_logprobs(of.hidden, of.head.weight, _its(batch.targets, of), bias=of.head.bias, temperature=own)
            for of, own in zip(states, each, strict=False)
        ], len(batch.targets)) + nothing  # fmt: skip
        if reference is None:
            return logp, None
        return logp, _joined(states, [
            exact_kl(of.hidden, of.head.weight, ref.hidden, ref.head.weight, temperature=own)
            for of, ref, own in zip(states, reference, each[: len(states)], strict=True)
        ], len(batch.targets))  # fmt: skip

    def _nothing(self) -> torch.Tensor:
        """0, with a gradient of 0 for every weight that is trained.

        Processes exchange the gradients of all of them, once each has its own; a micro-batch without speech, for
        example, has none for what speaks, and the others would wait for ever. And so a weight's step, its decay and
        its momentum do not depend on how answers are spread over processes. Of a sum, unlike of an element, the
        gradient is one number, seen as many. Divided layers are not whole now, and every pass runs them there and back.
        """
        divided = {of for layer in self.lm.layers() for of in layer.parameters()} if self.lm.divided else ()
        weights = [of for of in self.network.parameters() if of not in divided]
        trained = [of for of in weights if of.requires_grad] if torch.is_grad_enabled() else []
        return sum((0 * weight.sum() for weight in trained), torch.zeros((), device=weights[0].device))


def _its(values: torch.Tensor, states: States) -> torch.Tensor:
    """Those of the selected cells' values [N] that belong to the states."""
    return values if states.where is None else values[states.where]


def _joined(states: Sequence[States], values: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """Values of each head's cells as values of all selected cells [N]."""
    if len(states) == 1 and states[0].where is None:
        return values[0]
    places = torch.cat([of.where for of in states])
    joined = torch.cat(list(values))
    return joined.new_zeros(count).index_put((places,), joined)


class Reference:
    """The model as it was before training, in eval mode: LoRA's base, or a frozen copy of the policy as it is now.

    The copy is of the network alone: what hears, speaks and reads is the policy's.
    """

    def __init__(self, recipe: Recipe, policy: Policy):
        if recipe.lora:
            self.policy, self.off = policy, policy.network.disable_adapter
        else:
            lm = copy.copy(policy.lm)
            lm.model = copy.deepcopy(policy.network).eval().requires_grad_(False)
            self.policy, self.off = Policy(lm, share_prompts=policy.share_prompts), contextlib.nullcontext

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float | Sequence[float]) -> torch.Tensor:
        with self._evaluating():
            return self.policy(batch, temperature)[0]

    @torch.no_grad()
    def states(self, batch: Batch) -> list[States]:
        """What the exact KL compares with."""
        with self._evaluating():
            return self.policy.states(batch)

    @contextlib.contextmanager
    def _evaluating(self):
        was_training = self.policy.network.training
        self.policy.network.eval()
        try:
            with self.off():
                yield
        finally:
            self.policy.network.train(was_training)


def kl_per_token(recipe: Recipe, policy, batch: Batch, reference: Reference | None):
    """One forward of the policy → (log-probs [N], KL [N] or None), by the recipe's estimator."""
    temperature = recipe.rollout.temperature
    if reference is None:
        return policy(batch, temperature)
    if recipe.objective.exact_kl:
        return policy(batch, temperature, reference.states(batch))
    ref_logp = reference.logprobs(batch, temperature)
    logp, _ = policy(batch, temperature)
    return logp, kl_k3(logp, ref_logp)


def load_policy(recipe: Recipe) -> Policy:
    """Load the recipe's model, add LoRA or freeze what it says, check that its head is a plain linear layer.

    Weights that are trained are float32 whatever the dtype: at 1e-6, most steps would vanish in bfloat16's rounding.
    """
    dtype = getattr(torch, recipe.dtype)
    lm = load_model(recipe.model, dtype=dtype if recipe.lora else torch.float32)
    lm.compute = None if dtype == torch.float32 else dtype
    if len(lm.heads()) == 1:
        check_head(lm, recipe.model)
    for key, section in (("rollout", recipe.rollout), ("evaluation", recipe.evaluation)):
        try:
            lm.temperatures(section.temperature)
        except InputError as error:
            raise InputError(f"{recipe.model}: {key}.{error}") from error
    if isinstance(recipe.objective, Dpo) and recipe.objective.scope == "text" and not lm.layout.writes:
        raise InputError(f"{recipe.model}: objective.scope: the model writes no text; expected speech or all")
    if recipe.objective.exact_kl and any(head.bias is not None for head in lm.heads()):
        raise InputError(f"{recipe.model}: objective.kl.estimator: the model's head has a bias; expected k3")
    if recipe.lora:
        config = LoraConfig(
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            target_modules=lm.lora_modules(recipe.lora.targets),
            lora_dropout=0.0,
        )
        try:
            torch.manual_seed(recipe.seed)  # LoRA's A matrices start at random
            lm.model = get_peft_model(lm.model, config)
        except ValueError as error:
            raise InputError(f"lora.targets: {error}") from error
        if not all(isinstance(head, torch.nn.Linear) for head in lm.heads()):
            raise InputError("lora.targets: the vocabulary head cannot carry an adapter: its weight is what scores")
    freeze(lm.model, recipe.freeze)
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not lm.idle(name))
    if recipe.gradient_checkpointing:
        lm.model.train()  # transformers recomputes activations in train mode only
        lm.core().gradient_checkpointing_enable({"use_reentrant": False})
        lm.core().enable_input_require_grads()
    return Policy(lm, share_prompts=shares_prompts(recipe, sharing()))


def freeze(network: torch.nn.Module, patterns: Sequence[re.Pattern]) -> None:
    """Exclude the parameters whose name a pattern finds. InputError for a pattern that finds none."""
    for pattern in patterns:
        found = [parameter for name, parameter in network.named_parameters() if pattern.search(name)]
        if not found:
            raise InputError(f"freeze: {pattern.pattern!r} is in no parameter's name")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("freeze: no parameter is left to train")


@torch.no_grad()
def check_head(lm: SpeechLM, folder) -> None:
    """Log-probs are taken as head(hidden); a model that scales or caps its logits would be scored wrongly.

    The head is made to say numbers far apart: they must come out as they are, and the trunk's output must go in.
    """
    ids = torch.tensor([[0, 1]], device=lm.head().weight.device)
    said: list[torch.Tensor] = []

    def say(_module, inputs, output):
        said[:] = inputs[0], torch.linspace(-100, 100, output.shape[-1]).to(output).expand_as(output)
        return said[1]

    hook = lm.head().register_forward_hook(say)
    logits = lm.core()(input_ids=ids).logits
    hook.remove()
    hidden = lm.trunk()(input_ids=ids).last_hidden_state
    if not (torch.equal(logits.to(said[1]), said[1]) and torch.allclose(hidden, said[0], rtol=1e-2, atol=1e-4)):
        raise InputError(f"{folder}: model: its logits are not head(hidden) (scaled or soft-capped): not supported yet")
