"""The judge at an endpoint: a chat model that reads the question, reads and may hear the answer, and gives 1 to 5."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.audio import load_audio, wav_bytes
from elocute.data.rows import AUDIO_MARK, check_rows
from elocute.data.types import Answer, AudioRef, Example
from elocute.errors import InputError
from elocute.rewards.ask import ask_once
from elocute.rewards.chat import ChatEndpoint
from elocute.rewards.judge_cache import JudgeCache
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper
from elocute.rewards.rubrics import HIGH, LOW, NAMES, instructions

_VERDICT = re.compile(
    r"<justification>((?:(?!<justification>).)*?)</justification>\s*"
    r"<score>\s*([0-9]+(?:\.[0-9]+)?)\s*</score>",
    re.DOTALL,
)

Sound = tuple[np.ndarray, int]
"""float [samples], Hz."""


class JudgeReward:
    """A score in [1, 5] by one rubric: "holistic", "semantic", "acoustic", "continuation" for what follows a prompt, or
    the text file of one's own.

    send_audio: False for a judge that only reads; then neither the question's nor the answer's audio is sent.
    cache: a folder for replies that held a valid score, or None.
    The same request within a batch is made once. `detail` holds the justification.
    """

    low, high = LOW, HIGH

    def __init__(
        self,
        name: str,
        endpoint: ChatEndpoint,
        rubric: str | Path = "holistic",
        *,
        send_audio: bool = True,
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        cache: str | Path | None = None,
    ):
        self.name = name
        self.endpoint = endpoint
        self.rubric, self.instructions = rubric, instructions(rubric)
        self.send_audio = send_audio
        self.sampling = {"max_tokens": max_tokens} | ({} if temperature is None else {"temperature": temperature})
        self.cache = None if cache is None else JudgeCache(cache)

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row whose question cannot be put."""
        check_rows(examples, lambda example: check_question(example, self.rubric, self.send_audio))

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=self.send_audio, needs_text=not self.send_audio)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        return ask_once(self.endpoint, self.cache, [self.request(a) for a in answers], parse_verdict)

    def request(self, answer: Answer) -> dict[str, Any]:
        """The chat-completions body for one answer. Raises InputError as `material` does."""
        given = material(answer, self.rubric, self.send_audio)
        parts = [_text(part) if isinstance(part, str) else sound_part(*part) for part in given]
        messages = [{"role": "system", "content": self.instructions}, {"role": "user", "content": parts}]
        return {"model": self.endpoint.entry.model, "messages": messages, **self.sampling}


def material(answer: Answer, rubric: str | Path, send_audio: bool) -> list[str | Sound]:
    """What a judge receives of an answer, words and recordings in order.

    Raises InputError, naming the row, when the question cannot be read: its file is missing or damaged, or there is
    neither a file nor text.
    """
    example, utterance = answer.example, answer.utterance
    asked, given = _sides(rubric)
    question, recordings = check_question(example, rubric, send_audio)
    parts: list[str | Sound] = []
    if history := example.columns.get("history_text"):
        parts.append(f"The conversation before the {asked}:\n{history}")
    if question:
        parts.append(f"The {asked}:\n{question}")
    if recordings:
        parts += [f"The {asked}'s audio:", *(_recording(example, ref) for ref in recordings)]
    parts.append(f"The {given}'s transcript:\n{utterance.text}")
    if send_audio:
        parts += [f"The {given}'s audio:", (utterance.waveform, utterance.sample_rate)]
    return parts


def check_question(example: Example, rubric: str | Path, send_audio: bool) -> tuple[str, list[AudioRef]]:
    """The question's words and those of its sound files that are sent. InputError when there is neither."""
    question, recordings = question_of(example)
    recordings = recordings if send_audio else []
    if not question and not recordings:
        asked, _ = _sides(rubric)
        raise InputError(f"{example.where}: question_text: the judge needs the {asked} in words or as a file")
    return question, recordings


def parse_verdict(reply: str) -> Scored | Unavailable:
    """The last `<justification>…</justification><score>N</score>` whose N lies in [1, 5]; nothing else is a score."""
    verdicts = [(text.strip(), float(score)) for text, score in _VERDICT.findall(reply)]
    valid = [(text, score) for text, score in verdicts if LOW <= score <= HIGH]
    if valid:
        return Scored(valid[-1][1], {"justification": valid[-1][0]})
    if verdicts:
        return Unavailable(f"score {verdicts[-1][1]:g} is outside [{LOW:g}, {HIGH:g}]")
    return Unavailable(f"no verdict in the reply: {' '.join(reply.split())[:80]!r}")


def question_of(example: Example) -> tuple[str, list[AudioRef]]:
    """The question's words and its sound files: those of the last user turn, never the answer's or another turn's.

    A prompt to be continued is such a question. The words are `question_text`, or what the last user turn says beside
    its audio. Audio kept as encoded units is no sound file and is left out.
    """
    words, recordings, seen = "", [], 0
    for message in example.messages:
        count = message.content.count(AUDIO_MARK)
        if message.role == "user":
            words = message.content.replace(AUDIO_MARK, " ").strip()
            recordings = [ref for ref in example.audios[seen : seen + count] if ref.key is None]
        seen += count
    return example.question_text or words, recordings


def _sides(rubric: str | Path) -> tuple[str, str]:
    return NAMES.get(rubric, NAMES["holistic"])


def _recording(example: Example, ref: AudioRef) -> Sound:
    try:
        return load_audio(ref.path, seconds=ref.seconds)
    except InputError as error:
        raise InputError(f"{example.where}: audios: {error}") from None


def sound_part(waveform: np.ndarray, sample_rate: int) -> Mapping[str, Any]:
    """A waveform, float [samples], as a part of a chat message."""
    data = base64.b64encode(wav_bytes(waveform, sample_rate)).decode("ascii")
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _text(text: str) -> Mapping[str, Any]:
    return {"type": "text", "text": text}
