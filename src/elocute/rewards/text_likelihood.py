"""How likely a causal text LM finds a text, token by token: perplexity feedback, coherence, generative perplexity."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from elocute.errors import InputError
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.packaged import smollm2

PROMPT_TOKENS = 256  # the last ones of a longer prompt
TEXT_TOKENS = 256  # the first ones of a longer text, unless it is read whole


class TextLM:
    """log p of every token of a text, given a prompt or nothing, in nats.

    path: a local causal LM folder, a `.gguf` file, or None: the packaged SmolLM2-135M-Instruct (extra `local-judges`).
    fp32, whatever the weights' own type. What one text gets does not depend on what else is in the batch.
    """

    def __init__(self, path: str | Path | None = None, batch_size: int = 16, device: str | None = None):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.path = path = smollm2() if path is None else Path(path)
        self.batch_size = batch_size
        self.tokenizer = open_folder(path, AutoTokenizer)
        self.model = open_model(path, AutoModelForCausalLM, device)
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.start = _start(self.tokenizer)
        if self.start is None:
            raise InputError(f"{path}: the tokenizer has neither a first nor a last token to begin a text with")

    def log_probs(self, prompts: Sequence[str], texts: Sequence[str], *, whole: bool = False) -> list[np.ndarray]:
        """log p(token | start, prompt, tokens before) of each text's tokens: float64 [T_i], in the texts' order.

        An empty prompt: the text's own likelihood. Prompt and text are cut into tokens apart, a space before each, so
        that a text has the same tokens after any prompt. A text without tokens gives an empty array.
        whole: not only the first TEXT_TOKENS of a text, but as many as the model's context holds.
        """
        heads = [[self.start, *self._ids(prompt)[-PROMPT_TOKENS:]] for prompt in prompts]
        rooms = [self.context and self.context - len(head) if whole else TEXT_TOKENS for head in heads]
        tails = [self._ids(text)[:room] for text, room in zip(texts, rooms, strict=True)]
        found: list[np.ndarray] = [np.empty(0)] * len(tails)
        for batch in self._batches({i: len(heads[i]) + len(tail) for i, tail in enumerate(tails) if tail}):
            for i, row in zip(batch, self._batch([heads[i] for i in batch], [tails[i] for i in batch]), strict=True):
                found[i] = row
        return found

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def _batches(self, lengths: dict[int, int]) -> Iterator[list[int]]:
        """Rows by their lengths, shortest first: `batch_size` at most, and as many tokens as cut ones would have."""
        most = self.batch_size * (1 + PROMPT_TOKENS + TEXT_TOKENS)
        batch: list[int] = []
        for i in sorted(lengths, key=lengths.__getitem__):
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * lengths[i] > most):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids if text.strip() else []

    def _batch(self, heads: list[list[int]], tails: list[list[int]]) -> list[np.ndarray]:
        """Padded on the right: a causal model's real tokens cannot see it."""
        import torch

        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        length, first = max(map(len, rows)), min(map(len, heads))
        ids_BT = torch.tensor([row + [self.start] * (length - len(row)) for row in rows], device=self.model.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.model.device)
        with torch.inference_mode():
            # Only what follows the shortest head is scored: the vocabulary's matrix is a fifth of a small model's work.
            logits_BKV = self.model(ids_BT, attention_mask=mask_BT, logits_to_keep=length - first + 1).logits.float()
            next_BK1 = ids_BT[:, first:].unsqueeze(-1)
            scores_BK = logits_BKV[:, :-1].gather(-1, next_BK1).squeeze(-1) - logits_BKV[:, :-1].logsumexp(-1)
        scores = scores_BK.double().cpu().numpy()
        return [
            row[len(head) - first : len(head) - first + len(tail)]
            for row, head, tail in zip(scores, heads, tails, strict=True)
        ]


def _start(tokenizer) -> int | None:
    """What stands before a text. In training <|endoftext|> parts documents, where there is one; the first token of a
    chat model may be the mark of a turn, after which plain text is unlikely (by 0.5 nats a token for SmolLM2)."""
    vocabulary = tokenizer.get_vocab()
    tokens = ("<|endoftext|>", tokenizer.bos_token, tokenizer.eos_token)
    return next((vocabulary[token] for token in tokens if token in vocabulary), None)
