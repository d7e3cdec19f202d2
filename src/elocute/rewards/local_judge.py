"""The judge on disk: a chat model that reads (Mistral and its like) or hears (Qwen2-Audio), and gives 1 to 5."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.rewards.judge import check_question, material, parse_verdict
from elocute.rewards.local_chat import LocalChat, Question
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper
from elocute.rewards.rubrics import HIGH, LOW, Form, instructions

_POINTS = ("1", "2", "3", "4", "5")


class LocalJudgeReward:
    """A score in [1, 5] by a rubric, asked as the judge at an endpoint is (judge.py).

    rubric: its name, or a text file. send_audio: False for a model that only reads. verdict "written": the model writes
    its reasons and a score, in `max_tokens` at most; what holds no valid verdict is Unavailable. "likelihood": it
    writes nothing; the score is the mean of 1 … 5, each as probable as the model finds it as its reply (G-Eval, arXiv
    2303.16634). `detail` then holds these probabilities and `in_form`, how probable it is that it replies with one of
    them at all.
    """

    low, high = LOW, HIGH

    def __init__(
        self,
        name: str,
        chat: LocalChat,
        rubric: str | Path = "holistic",
        *,
        send_audio: bool = True,
        verdict: Form = "written",
        max_tokens: int = 512,
    ):
        if send_audio and not chat.hears:
            raise InputError(f"{chat.path}: a model that reads and does not hear; expected with it: send_audio: false")
        self.name, self.chat, self.rubric = name, chat, rubric
        self.instructions = instructions(rubric, verdict)
        self.send_audio, self.verdict, self.max_tokens = send_audio, verdict, max_tokens
        self.measures = ("in_form",) if verdict == "likelihood" else ()

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row whose question cannot be put."""
        check_rows(examples, lambda example: check_question(example, self.rubric, self.send_audio))

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=self.send_audio, needs_text=not self.send_audio)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        questions = [self.question(answer) for answer in answers]
        if self.verdict == "likelihood":
            found, read = self.chat.log_probs(questions, _POINTS), _mean
        else:
            found, read = self.chat.replies(questions, self.max_tokens), parse_verdict
        return [one if isinstance(one, Unavailable) else read(one) for one in found]

    def question(self, answer: Answer) -> Question:
        """What the model is asked about one answer. Raises InputError as `material` does."""
        return Question(tuple(material(answer, self.rubric, self.send_audio)), self.instructions)


def _mean(log_probs: np.ndarray) -> Outcome:
    if not np.isfinite(log_probs).all():
        return Unavailable("the model's likelihood is not finite")
    p = np.exp(log_probs - log_probs.max())
    p /= p.sum()
    value = float(np.clip(p @ np.arange(1, 6), LOW, HIGH))
    return Scored(value, {"probabilities": p.tolist(), "in_form": float(np.exp(log_probs).sum())})
