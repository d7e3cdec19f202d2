"""The judge at an endpoint: a chat model that reads the question, reads and may hear the answer, and gives 1 to 5."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.audio import load_audio, wav_bytes
from elocute.data.rows import AUDIO_MARK
from elocute.data.types import Answer, AudioRef, Example
from elocute.errors import InputError
from elocute.rewards.ask import ask_once
from elocute.rewards.chat import ChatEndpoint
from elocute.rewards.judge_cache import JudgeCache
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper
from elocute.rewards.rubrics import HIGH, LOW, NAMES, RUBRICS

_VERDICT = re.compile(
    r"<justification>((?:(?!<justification>).)*?)</justification>\s*"
    r"<score>\s*([0-9]+(?:\.[0-9]+)?)\s*</score>",
    re.DOTALL,
)


class JudgeReward:
    """A score in [1, 5] by one rubric: "holistic", "semantic", "acoustic", or "continuation" for what follows a prompt.

    send_audio: False for a judge that only reads; then neither the question's nor the answer's audio is sent.
    cache: a folder for replies that held a valid score, or None.
    The same request within a batch is made once. `detail` holds the justification.
    """

    low, high = LOW, HIGH

    def __init__(
        self,
        name: str,
        endpoint: ChatEndpoint,
        rubric: str = "holistic",
        *,
        send_audio: bool = True,
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        cache: str | Path | None = None,
    ):
        self.name = name
        self.endpoint = endpoint
        self.rubric = rubric
        self.send_audio = send_audio
        self.sampling = {"max_tokens": max_tokens} | ({} if temperature is None else {"temperature": temperature})
        self.cache = None if cache is None else JudgeCache(cache)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=self.send_audio, needs_text=not self.send_audio)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        return ask_once(self.endpoint, self.cache, [self.request(a) for a in answers], parse_verdict)

    def request(self, answer: Answer) -> dict[str, Any]:
        """The chat-completions body for one answer. Raises InputError, naming the row, when the question cannot be
        read: its file is missing or damaged, or there is neither a file nor text."""
        example, utterance = answer.example, answer.utterance
        asked, given = NAMES[self.rubric]
        question, recordings = question_of(example)
        parts = []
        if history := example.columns.get("history_text"):
            parts.append(_text(f"The conversation before the {asked}:\n{history}"))
        if question:
            parts.append(_text(f"The {asked}:\n{question}"))
        if self.send_audio and recordings:
            parts += [_text(f"The {asked}'s audio:"), *(_recording(example, ref) for ref in recordings)]
        elif not question:
            raise InputError(f"{example.where}: question_text: the judge needs the {asked} in words or as a file")
        parts.append(_text(f"The {given}'s transcript:\n{utterance.text}"))
        if self.send_audio:
            parts += [_text(f"The {given}'s audio:"), sound_part(utterance.waveform, utterance.sample_rate)]
        messages = [{"role": "system", "content": RUBRICS[self.rubric]}, {"role": "user", "content": parts}]
        return {"model": self.endpoint.entry.model, "messages": messages, **self.sampling}


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


def _recording(example: Example, ref: AudioRef) -> Mapping[str, Any]:
    try:
        return sound_part(*load_audio(ref.path, seconds=ref.seconds))
    except InputError as error:
        raise InputError(f"{example.where}: audios: {error}") from None


def sound_part(waveform: np.ndarray, sample_rate: int) -> Mapping[str, Any]:
    """A waveform, float [samples], as a part of a chat message."""
    data = base64.b64encode(wav_bytes(waveform, sample_rate)).decode("ascii")
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _text(text: str) -> Mapping[str, Any]:
    return {"type": "text", "text": text}
