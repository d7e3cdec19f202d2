"""Which tokens a component of the loss sees, and with what coefficient.

A component is Σ coefficient · weight · loss over all tokens of all rows of all micro-batches and ranks: the
coefficient holds the component's own global normaliser, so nothing is left to average afterwards. Normalisers count
tokens, never weights: a modality's weight changes the component, it does not cancel out.
"""

from typing import Literal

import torch
from torch import Tensor


def scope_mask(text: Tensor, action: Tensor, scope: Literal["all", "text", "speech"] = "all") -> Tensor:
    """The tokens in scope, bool [B, T]. text: True for text, False for speech; action: True where the token was
    sampled, or is to be learned (so False for prompt, forced tokens and padding)."""
    if scope == "all":
        return action
    if scope == "text":
        return action & text
    if scope == "speech":
        return action & ~text
    raise ValueError(f"unknown scope {scope!r}, expected all, text or speech")


def modality_weights(text: Tensor, text_weight: float, speech_weight: float) -> Tensor:
    """The weight of every token by its modality, float32 [B, T]."""
    return torch.where(text, float(text_weight), float(speech_weight)).float()


def token_coefficients(
    selected: Tensor,
    *,
    normaliser: Literal["sequence", "token", "group"] = "sequence",
    rows_total: int,
    tokens_total: int,
) -> Tensor:
    """Coefficients of the selected tokens, float32 [B, T]; 0 elsewhere.

    rows_total and tokens_total count rows and selected tokens over all micro-batches and ranks.
    - "sequence": mean over the row's selected tokens, then over rows (WavAlign's released code);
    - "token": mean over all selected tokens;
    - "group": sum over tokens, mean over rows (WavAlign's paper: Σ_tokens / G).
    A row without selected tokens gives zeros, and so trains nothing.
    """
    if normaliser not in ("sequence", "token", "group"):
        raise ValueError(f"unknown normaliser {normaliser!r}, expected sequence, token or group")
    per_row = selected.sum(-1, keepdim=True)
    total = tokens_total if normaliser == "token" else rows_total
    least = int(per_row.sum()) if normaliser == "token" else int((per_row > 0).sum())
    if total < least:
        raise ValueError(f"normaliser {normaliser!r}: a total of {total}, but {least} in this micro-batch alone")
    denominator = max(total, 1) * (per_row.clamp(min=1) if normaliser == "sequence" else torch.ones_like(per_row))
    return torch.where(selected, 1.0 / denominator.double(), 0.0).float()
