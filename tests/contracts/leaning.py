"""Tiny random networks whose answers are mostly proper ones: each head leans to what may stand there.

A random network says random tokens, and no answer ever ends. Here every embedding has one large value, the final norm
makes a constant of it, and the head reads from that how likely a token is; the rest of the network adds the noise that
an adapter can move. Names, shapes and files stay as they were published.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

NEVER = -16.0
_LARGE = 40.0


def lean(
    folder: Path,
    embeddings: list[str],
    norms: list[str],
    heads: Mapping[str, Mapping[int, float]],
    never: float = NEVER,
) -> Path:
    """Rewrite the shards that hold what is named. heads: head → token → logit; all other tokens: `never`."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for file in sorted({index[name] for name in [*embeddings, *norms, *heads]}):
        state = load_file(folder / file)
        for name, tensor in state.items():
            width = tensor.shape[-1]
            if name in embeddings:
                tensor[:, 0] = _LARGE
            elif name in norms:
                tensor[0] = 1.0
            elif name in heads:
                tensor[:, 0] = never / width**0.5  # what the norm makes of one large value
                for token, logit in heads[name].items():
                    tensor[token, 0] = logit / width**0.5
        save_file(state, folder / file, metadata={"format": "pt"})
    return folder
