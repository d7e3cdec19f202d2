"""How near the answer's meaning is to a reference: cosine of mean-pooled sentence embeddings (SBERT, 1908.10084)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.outcome import Outcome, Scored
from elocute.rewards.proper import score_proper
from elocute.rewards.rule import accepted_answers


class SentenceEncoder:
    """Texts as unit vectors. path: a local transformers encoder folder (model and tokenizer)."""

    def __init__(self, path: str | Path, batch_size: int = 32, device: str | None = None):
        from transformers import AutoModel, AutoTokenizer

        self.path, self.batch_size = Path(path), batch_size
        self.tokenizer = open_folder(path, AutoTokenizer)
        self.model = open_model(path, AutoModel, device)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [N, D], float64: the mean of the last hidden states over real tokens, padding excluded."""
        import torch

        rows = []
        for i in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(texts[i : i + self.batch_size], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(self.model.device)
            with torch.inference_mode():
                hidden_BTD = self.model(**batch).last_hidden_state.double()
            mask_BT1 = batch["attention_mask"].unsqueeze(-1)
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
            rows.append(torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy())
        return np.concatenate(rows)


class EmbeddingReward:
    """Cosine in [-1, 1] between the answer's text and `column`; of several references the nearest counts.

    path: a local transformers encoder folder (model and tokenizer).
    """

    low, high = -1.0, 1.0

    def __init__(self, name: str, path: str | Path, column: str, batch_size: int = 32, device: str | None = None):
        self.name = name
        self.column = column
        self.encoder = SentenceEncoder(path, batch_size, device)

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row whose column cannot be used."""
        check_rows(examples, lambda example: accepted_answers(example, self.column))

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=True)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        references = [[str(r) for r in accepted_answers(a.example, self.column)] for a in answers]
        flat = self.encoder.embed([r for group in references for r in group])
        texts = self.encoder.embed([a.utterance.text for a in answers])
        outcomes, start = [], 0
        for text, group in zip(texts, references, strict=True):
            cosines = flat[start : start + len(group)] @ text
            outcomes.append(Scored(float(np.clip(cosines.max(), -1, 1))))
            start += len(group)
        return outcomes
