"""Log-probs of whole utterances under a unit LM: what likelihood suites compare.

- log p of every token but the first (BOS, or the first unit of a model without one), float32, summed in float64.
- Utterances of like length share a batch. Padding stands at the right, after all that is scored, where a causal model
  does not look. Batch size and order do not change the result; rows × vocabulary is never built.
- Equal utterances are computed once, so that a pair of equal units is a tie and not a matter of rounding.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef
from elocute.errors import RunError
from elocute.models import SpeechLM, UnitLM
from elocute.models.layout import Tokens
from elocute.objectives.logprobs import selected_logprobs
from elocute.progress import Progress

Normalisation = Literal["mean", "sum"]
LogProb = tuple[float, int]
"""(sum of the tokens' log-probs in nats, number of tokens)."""

BATCH = 32


def normalised(logprob: LogProb, normalisation: Normalisation) -> float:
    """The score of an utterance: its log-prob a token ("mean"), or of the whole ("sum")."""
    total, tokens = logprob
    return total / tokens if normalisation == "mean" else total


@torch.no_grad()
def utterance_logprobs(
    lm: SpeechLM,
    utterances: Sequence[tuple[torch.Tensor, Tokens]],
    batch: int = BATCH,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[LogProb]:
    """log p(tokens | prompt) of each (prompt ids [P], tokens [T]), in the same order; P ≥ 1, T may be 0.

    progress is told how many different ones are done.
    """
    rows = [(tuple(prompt.tolist()), tuple(tokens.ids.tolist())) for prompt, tokens in utterances]
    different = sorted(set(rows), key=lambda row: (len(row[0]) + len(row[1]), row))
    found: dict[tuple, LogProb] = {}
    core = lm.core()
    was_training = core.training
    core.eval()
    try:
        for start in range(0, len(different), batch):
            piece = different[start : start + batch]
            found |= zip(piece, _logprobs(lm, piece), strict=True)
            progress(len(found), len(different))
    finally:
        core.train(was_training)
    return [found[row] for row in rows]


def _logprobs(lm: SpeechLM, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[LogProb]:
    device = lm.head().weight.device
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt + rest) for prompt, rest in rows], batch_first=True)
    ids = ids.to(device)
    prompts = torch.tensor([len(prompt) for prompt, _ in rows], device=device)[:, None]
    tokens = torch.tensor([len(rest) for _, rest in rows], device=device)[:, None]
    place = torch.arange(ids.shape[1], device=device)
    real = (place < prompts + tokens).long()
    hidden, _ = lm.hidden(
        input_ids=ids, attention_mask=real, position_ids=place.expand_as(ids).contiguous(), use_cache=False
    )
    scored = (place >= prompts) & real.bool()
    owner, column = scored.nonzero(as_tuple=True)
    head = lm.head()
    logp = selected_logprobs(hidden[owner, column - 1], head.weight, ids[owner, column], bias=head.bias)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, owner, logp.double())
    return list(zip(sums.tolist(), tokens[:, 0].tolist(), strict=True))


def file_logprobs(
    lm: UnitLM,
    audio: EncodedAudio,
    files: Iterable[Path],
    batch: int = BATCH,
    progress: Progress = lambda *_: None,
) -> dict[Path, LogProb]:
    """The log-prob of each sound file, encoded once (see data/cache.py).

    InputError names a file that cannot be heard, has nothing to be scored, or exceeds the model's context.
    """
    files = sorted(set(files))
    utterances = []
    for done, file in enumerate(files, start=1):
        utterances.append(lm.encode_utterance(AudioRef(file), audio))
        progress("encode", done, len(files), {})
    found = utterance_logprobs(lm, utterances, batch, lambda done, of: progress("score", done, of, {}))
    for file, (total, _) in zip(files, found, strict=True):
        if not math.isfinite(total):
            raise RunError(f"{file}: its log-prob is {total}: the model's weights or activations are not finite")
    return dict(zip(files, found, strict=True))
