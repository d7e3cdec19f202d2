"""Gradients of RL and SFT by modality at the base model: how large, how steady, and do they pull the same way?

After the paper's appendix C. Over batches of rollouts: the norm of each component's gradient, its steadiness
‖mean over batches‖ / mean ‖·‖ (1: every batch says the same; 1/√batches: noise), and cosines between components.
"""

import itertools
from pathlib import Path

import torch

from elocute.recipe import load_recipe
from elocute.training.experience import step_examples
from elocute.training.trainer import Trainer
from elocute.training.update import Update

RECIPE = "benchmarks/wavalign_ablation/recipe.yaml"
BATCHES = 24
COMPONENTS = {
    "rl_text": (1.0, "objective.policy_gradient.scope=text"),
    "rl_speech": (1.0, "objective.policy_gradient.scope=speech"),
    "sft_text": (0.0, "objective.sft.scope=text"),
    "sft_speech": (0.0, "objective.sft.scope=speech"),
}


def measure(folder: Path, batches: int = BATCHES) -> dict:
    """{"norm": {component: {mean, std}}, "steadiness": {…}, "cosine": {"a · b": mean over batches}, "batches"}."""
    base = ["objective.kl.text=0", "objective.kl.speech=0", "seed=0"]
    trainer = Trainer(load_recipe(RECIPE, [f"run_dir={folder}", *base]))
    updates = {
        name: (share, Update(load_recipe(RECIPE, [*base, scope]), trainer.policy, None, trainer.accelerator))
        for name, (share, scope) in COMPONENTS.items()
    }
    gradients = {name: [] for name in COMPONENTS}
    for step in range(batches):
        examples = [trainer.examples[index] for index in step_examples(trainer.examples, trainer.recipe, step)]
        rollouts, targets = trainer.rollout_rows(trainer.collector(step)), trainer.target_rows(examples)
        for name, (share, update) in updates.items():
            update(rollouts, targets, share)
            gradients[name].append(_take_gradient(trainer.policy))
    return {"batches": batches} | _compare({name: torch.stack(rows) for name, rows in gradients.items()})


def _take_gradient(policy: torch.nn.Module) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    policy.zero_grad()
    return flat


def _compare(gradients: dict[str, torch.Tensor]) -> dict:
    norms = {name: rows.norm(dim=1) for name, rows in gradients.items()}
    return {
        "norm": {name: {"mean": float(n.mean()), "std": float(n.std())} for name, n in norms.items()},
        "steadiness": {name: float(rows.mean(0).norm() / norms[name].mean()) for name, rows in gradients.items()},
        "cosine": {
            f"{one} · {two}": float(torch.cosine_similarity(gradients[one], gradients[two]).mean())
            for one, two in itertools.combinations(gradients, 2)
        },
    }
