"""VITA-Audio's training loss: cross-entropy of the main head, and a share of that of every depth.

    loss = CE_main + w / N · Σ_d CE_d,   each a mean over its labelled tokens; in float32 whatever the weights are

as the original's: a frozen head (`train_main` false) leaves CE_main out. Rows may hold several sequences each, whose
position_ids start at 0. CE_main shifts by one within a row of the batch. A depth's states of the whole batch stand in
one row, and the shift runs over that: the last state of a sequence is asked for the next one's first token that the
depth keeps. Both shifts cross from one sequence into the next; where prompts carry no labels, nothing comes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elocute.models.vita.network import VitaForCausalLM
from elocute.objectives.logprobs import selected_logprobs

IGNORED = -100
"""The label of a token that is not learnt."""


@dataclass(frozen=True)
class VitaLoss:
    """total, main and each depth's, 0-dimensional, in nats a token; main is in `total` only where the head is trained.

    A part without any labelled token is 0, and so is its gradient.
    """

    total: Tensor
    main: Tensor
    depths: list[Tensor]


def vita_loss(
    head: Tensor,
    states: Sequence[tuple[Tensor, Tensor]],
    labels: Tensor,
    *,
    mtp_loss_weight: float = 1.0,
    train_main: bool = True,
) -> VitaLoss:
    """The loss of all depths' states, `VitaForCausalLM.packed_depths`.

    head [V, D]; states: (h_d [M_d, D], last [M_d]) for d = 0 … N; labels int64 [B, T], −100 where nothing is learnt.
    """
    flat = labels.flatten()
    (hidden, _), *ahead = states
    shifted = torch.full_like(labels, IGNORED)
    shifted[:, :-1] = labels[:, 1:]
    main = _cross_entropy(hidden, head, shifted.flatten())
    depths = [_cross_entropy(h[:-1], head, flat[last][1:]) for h, last in ahead]
    total = main if train_main else main * 0
    if depths:
        total = total + mtp_loss_weight / len(depths) * torch.stack(depths).sum()
    return VitaLoss(total, main, depths)


def training_loss(
    network: VitaForCausalLM,
    ids: Tensor,
    labels: Tensor,
    position_ids: Tensor,
    *,
    embeds: Tensor | None = None,
    detach: bool | None = None,
) -> VitaLoss:
    """Run the network on packed rows, ids, labels and position_ids int64 [B, T]; weight and options as in the original.

    embeds [B, T, D]: with heard audio written over the ids'. detach: whether the depths' loss stops short of the main
    layers and the embeddings; by default always for Plus, else where the head is frozen.
    """
    trains_main = network.lm_head.weight.requires_grad
    if detach is None:
        detach = network.config.hears_features or not trains_main
    if embeds is None:
        embeds = network.model.embed_tokens(ids)
    hidden = network.model(inputs_embeds=embeds, position_ids=position_ids, use_cache=False).last_hidden_state
    states = network.packed_depths(ids, hidden, position_ids, detach=detach)
    weight = network.config.mtp_loss_weight
    return vita_loss(network.lm_head.weight, states, labels, mtp_loss_weight=weight, train_main=trains_main)


def _cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    learnt = labels != IGNORED
    logp = selected_logprobs(hidden[learnt], head, labels[learnt])
    return -logp.sum() / max(1, len(logp))
