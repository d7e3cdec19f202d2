"""Log-probs of chosen tokens, and the exact KL, from hidden states and the head, never building rows × vocabulary.

The rows are cut into chunks and the vocabulary into tiles; a softmax runs over the tiles with a running maximum, in
float32 whatever the model's dtype. With p = softmax(l) and l = (h·Wᵀ + bias) / T, the gradients are
    ∂ log p[y] / ∂h = (W[y] − Σ_v p[v]·W[v]) / T      ∂ log p[y] / ∂W[v] = ([v = y] − p[v])·h / T
- The one for `hidden` is known up to the row's upstream factor once the softmax is, so the forward pass computes it
  beside the log-probs. A frozen head (LoRA) then needs nothing more: two matrix products in all, none repeated.
- The one for `weight` needs the upstream factors, hence the logits a second time. The place where the weight gradient
  will lie, [V, D], is free until then, so the logits of the first D rows wait in it and are not computed again.
Left out: double backward.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from elocute.objectives.precision import wide_dtype

_TILE_ELEMENTS = 2 * 2**20  # logits alive at a time: 8 MiB in float32, small enough for caches, large enough for BLAS


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax((hidden·weightᵀ + bias) / temperature) at `targets`: [N] in float32 (float64 for float64 input).

    hidden [N, D], weight [V, D], targets [N] in [0, V), bias [V]. The caller selects the rows before. `chunk_rows`
    bounds the rows worked on at a time (default D). `with_entropy` adds the entropy in nats, [N], without gradient.
    N = 0 gives an empty result whose gradients are zeros. Raises ValueError for shapes or targets that do not fit.
    """
    _check_head(hidden, weight, temperature, chunk_rows)
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets: expected one per row, {hidden.shape[0]}, got shape {tuple(targets.shape)}")
    if targets.numel() and (targets.min() < 0 or targets.max() >= weight.shape[0]):
        raise ValueError(f"targets: expected token ids in [0, {weight.shape[0]}), select the rows before")
    recorded = torch.is_grad_enabled()  # always off inside forward(), so it is asked here
    logp, entropy = _SelectedLogprobs.apply(
        hidden, weight, bias, targets, temperature, chunk_rows or hidden.shape[1], with_entropy, recorded
    )
    return (logp, entropy) if with_entropy else logp


def all_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden·weightᵀ + bias [N, V], float32 also for a bfloat16 head: what is sampled from is what is scored."""
    return _logits(hidden, weight, bias, slice(0, len(weight)), 1.0)


def exact_kl(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    *,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """KL(policy ‖ reference) in nats over the whole vocabulary for every row: [N], gradient to hidden and weight only.

    hidden [N, D], weight [V, D]; ref_hidden [N, D'], ref_weight [V, D']. Raises ValueError for shapes that do not fit.
    """
    _check_head(hidden, weight, temperature, chunk_rows)
    _check_head(ref_hidden, ref_weight, temperature, chunk_rows)
    if ref_hidden.shape[0] != hidden.shape[0] or ref_weight.shape[0] != weight.shape[0]:
        raise ValueError("the reference must have the policy's rows and vocabulary")
    return _ExactKL.apply(
        hidden, weight, ref_hidden.detach(), ref_weight.detach(), temperature, chunk_rows or hidden.shape[1]
    )


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk_rows, with_entropy, recorded):
        count, dtype = hidden.shape[0], wide_dtype(hidden, weight)
        wants_hidden = recorded and hidden.requires_grad
        wants_weight = recorded and weight.requires_grad
        first = min(chunk_rows, count)
        # The future weight gradient keeps the first chunk's logits meanwhile, if they fit and nothing is rounded.
        keeps = wants_weight and 0 < first <= hidden.shape[1] and weight.dtype == dtype
        kept = torch.empty_like(weight, memory_format=torch.contiguous_format) if keeps else None

        lse, picked, entropy = (hidden.new_zeros(count, dtype=dtype) for _ in range(3))
        expected = hidden.new_zeros(hidden.shape if wants_hidden else (0,), dtype=dtype)  # Σ_v p[v]·W[v]
        tile_space = hidden.new_empty(first * _tile_width(first), dtype=dtype)  # one for all tiles: fresh pages cost
        for rows in _slices(count, chunk_rows):
            softmax = _RunningSoftmax(lse[rows])
            for tile in _slices(len(weight), _tile_width(first)):
                space = _matrix(tile_space, rows, tile)
                parks = kept is not None and rows.start == 0
                logits = _matrix(kept[tile].view(-1), rows, tile) if parks else space
                _logits(hidden[rows], weight[tile], bias, tile, temperature, out=logits)
                column, inside = _column(targets[rows], tile)
                picked[rows] += torch.where(inside, logits.gather(1, column[:, None])[:, 0], 0)
                p, decay = softmax.add(logits, out=torch.empty_like(logits) if with_entropy and not parks else space)
                if with_entropy:
                    entropy[rows] = entropy[rows] * decay + (p * logits).sum(-1)
                if wants_hidden:
                    _add_product(expected[rows].mul_(decay[:, None]), p, weight[tile])
            lse[rows] = softmax.lse()
            if with_entropy:
                entropy[rows] = lse[rows] - entropy[rows] / softmax.total
            if wants_hidden:
                expected[rows] /= softmax.total[:, None]
        ctx.save_for_backward(hidden, weight, bias, targets, lse, expected)
        ctx.temperature, ctx.chunk_rows, ctx.kept = temperature, chunk_rows, kept
        ctx.mark_non_differentiable(entropy)
        return picked - lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        hidden, weight, bias, targets, lse, expected = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        upstream = upstream / ctx.temperature
        grad_hidden = grad_weight = grad_bias = None
        if wants_hidden:
            grad_hidden = (upstream[:, None] * (weight[targets] - expected)).to(hidden.dtype)
        if wants_weight or wants_bias:
            kept, ctx.kept = ctx.kept, None  # overwritten below: a second backward computes the logits again
            grad_weight, grad_bias = _head_gradient(
                hidden, weight, bias, targets, lse, upstream, ctx.temperature, ctx.chunk_rows, kept
            )
        return grad_hidden, grad_weight, grad_bias if wants_bias else None, None, None, None, None, None


def _head_gradient(hidden, weight, bias, targets, lse, upstream, temperature, chunk_rows, kept):
    """Gradients of Σ upstream·logp·T for weight [V, D], written into `kept` if there is one, and for the bias [V]."""
    count, dtype = hidden.shape[0], wide_dtype(hidden, weight)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if kept is None else kept
    grad_bias = None if bias is None else torch.empty_like(bias)
    first = min(chunk_rows, count)
    tile_space = hidden.new_empty(first * _tile_width(first), dtype=dtype)
    for tile in _slices(len(weight), _tile_width(first)):
        total = grad_weight[tile].to(dtype)  # itself, unless the head is bf16
        total_bias = weight.new_zeros(len(total), dtype=dtype)
        for rows in _slices(count, chunk_rows):
            grad = logits = _matrix(tile_space, rows, tile)
            if kept is not None and rows.start == 0:
                logits = _matrix(total.view(-1), rows, tile)
            else:
                _logits(hidden[rows], weight[tile], bias, tile, temperature, out=logits)
            torch.sub(logits, lse[rows, None], out=grad).exp_().mul_(-upstream[rows, None])
            column, inside = _column(targets[rows], tile)
            grad.scatter_add_(1, column[:, None], torch.where(inside, upstream[rows], 0)[:, None])
            _add_product(total, grad.t(), hidden[rows], keep=rows.start > 0)  # in place of what was parked there
            if grad_bias is not None:
                total_bias += grad.sum(0)
        if grad_weight.dtype != dtype:
            grad_weight[tile] = total
        if grad_bias is not None:
            grad_bias[tile] = total_bias
    return grad_weight, grad_bias


class _ExactKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ref_hidden, ref_weight, temperature, chunk_rows):
        # KL = Σ p·(l − l_ref) − lse + lse_ref: `gap` is the first term.
        count, dtype = hidden.shape[0], wide_dtype(hidden, weight)
        gap, lse, ref_lse = (hidden.new_zeros(count, dtype=dtype) for _ in range(3))
        for rows in _slices(count, chunk_rows):
            softmax, ref_softmax = _RunningSoftmax(lse[rows]), _RunningSoftmax(ref_lse[rows])
            for tile in _slices(len(weight), _tile_width(min(chunk_rows, count))):
                logits = _logits(hidden[rows], weight[tile], None, tile, temperature)
                ref_logits = _logits(ref_hidden[rows], ref_weight[tile], None, tile, temperature)
                difference = logits - ref_logits
                p, decay = softmax.add(logits, out=logits)
                ref_softmax.add(ref_logits, out=ref_logits)
                gap[rows] = gap[rows] * decay + difference.mul_(p).sum(-1)
            gap[rows] /= softmax.total
            lse[rows], ref_lse[rows] = softmax.lse(), ref_softmax.lse()
        ctx.save_for_backward(hidden, weight, ref_hidden, ref_weight, lse, gap)
        ctx.temperature, ctx.chunk_rows = temperature, chunk_rows
        return gap - lse + ref_lse

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        # ∂KL/∂l = p·((l − l_ref) − gap)
        hidden, weight, ref_hidden, ref_weight, lse, gap = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        count, dtype = hidden.shape[0], wide_dtype(hidden, weight)
        upstream = upstream / ctx.temperature
        grad_hidden = hidden.new_zeros(hidden.shape, dtype=dtype)
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for tile in _slices(len(weight), _tile_width(min(ctx.chunk_rows, count))):
            total = grad_weight[tile].to(dtype) if wants_weight else None  # itself, unless the head is bf16
            for rows in _slices(count, ctx.chunk_rows):
                logits = _logits(hidden[rows], weight[tile], None, tile, ctx.temperature)
                ref_logits = _logits(ref_hidden[rows], ref_weight[tile], None, tile, ctx.temperature)
                factor = ref_logits.neg_().add_(logits).sub_(gap[rows, None]).mul_(upstream[rows, None])
                grad = logits.sub_(lse[rows, None]).exp_().mul_(factor)
                if wants_hidden:
                    _add_product(grad_hidden[rows], grad, weight[tile])
                if wants_weight:
                    _add_product(total, grad.t(), hidden[rows])
            if wants_weight and grad_weight.dtype != dtype:
                grad_weight[tile] = total
        return grad_hidden.to(hidden.dtype) if wants_hidden else None, grad_weight, None, None, None, None


class _RunningSoftmax:
    """A softmax seen tile by tile: `top` is the maximum so far, `total` the sum of exp(logits − top), both [n]."""

    def __init__(self, like: Tensor):
        self.top = torch.full_like(like, -torch.inf)
        self.total = torch.zeros_like(like)

    def add(self, logits: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor]:
        """exp(logits − top) [n, w], written into `out` and not yet divided by the total, and the factor [n] for all
        that was summed before."""
        top = torch.maximum(self.top, logits.amax(-1))
        decay = torch.exp(self.top - top)
        p = torch.sub(logits, top[:, None], out=out).exp_()
        self.total = self.total * decay + p.sum(-1)
        self.top = top
        return p, decay

    def lse(self) -> Tensor:
        return self.top + self.total.log()


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, tile: slice, temperature: float, out=None) -> Tensor:
    """The logits [n, w] of a tile, `weight` being the tile's; written into `out` if given."""
    if out is None:
        out = hidden.new_empty((len(hidden), len(weight)), dtype=wide_dtype(hidden, weight))
    _add_product(out, hidden, weight.t(), keep=False)
    if bias is not None:
        out += bias[tile]
    return out if temperature == 1.0 else out.div_(temperature)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, keep: bool = True) -> None:
    """total += a @ b, or total = a @ b without `keep`; total is float32 (float64), the product is never rounded.

    In-place and out= on purpose: autocast, which would round to bf16, leaves these alone.
    """
    if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):  # tensor cores sum in float32
        torch.addmm(total, a.to(b.dtype), b, beta=int(keep), out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=int(keep))


def _column(targets: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Where each row's target stands in the tile, clamped to it, and whether it is in the tile at all."""
    column = targets - tile.start
    width = tile.stop - tile.start
    return column.clamp(0, width - 1), (column >= 0) & (column < width)


def _matrix(space: Tensor, rows: slice, tile: slice) -> Tensor:
    """The start of a flat stretch of memory as a matrix [rows, tile]."""
    height, width = rows.stop - rows.start, tile.stop - tile.start
    return space[: height * width].view(height, width)


def _tile_width(rows: int) -> int:
    return max(1, _TILE_ELEMENTS // max(1, rows))


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _check_head(hidden: Tensor, weight: Tensor, temperature: float, chunk_rows: int | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"expected hidden [N, D] and weight [V, D], got {[*hidden.shape]} and {[*weight.shape]}")
    if temperature <= 0 or (chunk_rows is not None and chunk_rows < 1):
        raise ValueError(f"expected temperature > 0 and chunk_rows ≥ 1, got {temperature} and {chunk_rows}")
