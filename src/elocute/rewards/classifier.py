"""The probability a sequence classifier gives one of its labels, on the answer's text."""

from collections.abc import Sequence
from pathlib import Path

from elocute.data.types import Answer
from elocute.errors import InputError
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.outcome import Outcome, Scored
from elocute.rewards.proper import score_proper


class ClassifierReward:
    """P(label | text) in [0, 1]: softmax over the labels, or a sigmoid where the model says it is multi-label.

    path: a local AutoModelForSequenceClassification folder. Raises InputError when it has no such label.
    """

    low, high = 0.0, 1.0

    def __init__(self, name: str, path: str | Path, label: str, batch_size: int = 32, device: str | None = None):
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        self.name = name
        self.batch_size = batch_size
        config = open_folder(path, AutoConfig)
        if label not in config.label2id:
            raise InputError(f"{path}: label {label!r} is not one of the model's labels: {', '.join(config.label2id)}")
        self.label_id = config.label2id[label]
        self.multi_label = config.problem_type == "multi_label_classification"
        if config.num_labels < 2 and not self.multi_label:
            raise InputError(f"{path}: a classifier with one output gives no probability; at least two labels expected")
        self.tokenizer = open_folder(path, AutoTokenizer)
        self.model = open_model(path, AutoModelForSequenceClassification, device)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=True)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        import torch

        outcomes: list[Outcome] = []
        for i in range(0, len(answers), self.batch_size):
            texts = [a.utterance.text for a in answers[i : i + self.batch_size]]
            batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**batch).logits.float()
            probabilities = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            outcomes += [Scored(p) for p in probabilities[:, self.label_id].tolist()]
        return outcomes
