"""The reference's log-probs of rows' answers, computed once and kept on disk.

An entry belongs to one model (the digest of its folder), the precision it is run in, and the very tokens of all pairs:
whatever changes a log-prob makes another entry. Sums by modality over all tokens are kept, so that scope, weights, β
and loss may differ between runs that share an entry. Entries appear whole; a damaged one is made again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from elocute.data.digest import digest_folder
from elocute.data.files import cache_folder, write_atomically
from elocute.models.batch import tensors_of
from elocute.recipe import Recipe
from elocute.training.pairs import Pair
from elocute.training.policy import Policy, Reference
from elocute.training.preference_update import score_pairs


def cached_sums(
    recipe: Recipe,
    policy: Policy,
    pairs: Sequence[Pair],
    accelerator: Accelerator,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """float64 [n, 2, 2], as score_pairs over all tokens. Missing ones are computed by all ranks together.

    progress: called with this rank's pairs done so far.
    """
    folder = recipe.objective.reference_cache or cache_folder("reference")
    path = folder / f"{entry_name(recipe, policy, pairs)}.safetensors"
    found = _read(path, len(pairs))
    missing = torch.tensor(int(found is None), device=accelerator.device)
    if not int(accelerator.reduce(missing, "sum")):
        return found
    reference = Reference(recipe, policy)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    sums = torch.zeros(len(pairs), 2, 2, dtype=torch.float64)
    sums[mine] = score_pairs(
        recipe, policy, lambda batch: reference.logprobs(batch, 1.0), pairs[mine], "all", accelerator.device, progress
    )
    sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    if accelerator.is_main_process:
        write_atomically(path, save({"logp": sums}))
    return sums


def entry_name(recipe: Recipe, policy: Policy, pairs: Sequence[Pair]) -> str:
    """The key of these pairs' entry, 64 hexadecimal digits."""
    tokens = hashlib.sha256()
    for pair in pairs:
        for part in (*tensors_of(pair.prompt), pair.chosen.ids, pair.rejected.ids):
            tokens.update(f"{part.dtype} {list(part.shape)} ".encode() + part.numpy().tobytes())
    weights = next(policy.network.parameters()).dtype
    parts = [digest_folder(recipe.model), str(weights), str(policy.lm.compute), tokens.hexdigest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path, count: int) -> torch.Tensor | None:
    """The sums of an entry, or None when there is none or it is damaged."""
    try:
        sums = load_file(path)["logp"]
    except (OSError, SafetensorError, KeyError):
        return None
    return sums if sums.shape == (count, 2, 2) and sums.dtype == torch.float64 else None
