"""Spoken question answering: is the answer right as written, is it right as heard, does the voice say what was written.

- answer_accuracy_text: the normalised text is one of the row's accepted answers.
- answer_accuracy_speech: so is what the ear hears in the audio (a broken answer is wrong).
- speech_wer: corpus WER of what the ear hears against what the model wrote, over proper answers with text.
- broken_audio: share of answers that are no proper speech (no end, empty, units in the wrong place).

The ear is never a reward's. Every metric comes with n and a 95 % interval: Wilson for shares, bootstrap for WER.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer

from elocute.data.cache import EncodedAudio
from elocute.data.normalise import normalise
from elocute.data.types import Example, Utterance
from elocute.evaluation.statistics import Estimate, bootstrap_ratio, share
from elocute.models import SpeechLM
from elocute.rewards.rule import right_answers
from elocute.rollout import Sampling, sample_groups, seed_of

Transcribe = Callable[[list, int], list[str]]


@dataclass(frozen=True)
class Row:
    """One evaluated question."""

    example: Example
    utterance: Utterance
    heard: str
    correct_text: bool
    correct_speech: bool
    errors: int
    words: int


def answer_all(
    lm: SpeechLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Utterance]:
    """One answer to each example. Seeds depend on the example's id alone, so before and after use the same draws."""
    # Prompts of one length lie together: less padding. The result does not depend on it.
    prompts = [lm.encode_prompt(example, audio) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: len(prompts[index]))
    found: dict[int, Utterance] = {}
    for start in range(0, len(order), batch):
        piece = order[start : start + batch]
        seeds = [[seed_of(seed, "eval", examples[index].id)] for index in piece]
        for index, group in zip(piece, sample_groups(lm, [prompts[i] for i in piece], seeds, sampling), strict=True):
            found[index] = lm.decode(group[0].tokens.ids)
        progress(len(found))
    return [found[index] for index in range(len(examples))]


def judge_all(examples: Sequence[Example], utterances: Sequence[Utterance], transcribe: Transcribe) -> list[Row]:
    """Hear every answer and compare: text and speech with the row's `answer`, speech with the text."""
    rate = utterances[0].sample_rate
    spoken = [index for index, utterance in enumerate(utterances) if not utterance.broken]
    heard = dict(zip(spoken, transcribe([utterances[i].waveform for i in spoken], rate), strict=True))
    rows = []
    for index, (example, utterance) in enumerate(zip(examples, utterances, strict=True)):
        accepted = right_answers(example, "answer")
        text, ear = normalise(utterance.text), normalise(heard.get(index, ""))
        counts = utterance.broken is None and text
        rows.append(
            Row(
                example,
                utterance,
                heard.get(index, ""),
                correct_text=text in accepted,
                correct_speech=utterance.broken is None and ear in accepted,
                errors=word_errors(text, ear) if counts else 0,
                words=len(text.split()) if counts else 0,
            )
        )
    return rows


def word_errors(reference: str, heard: str) -> int:
    """Substitutions + deletions + insertions between two normalised texts."""
    measured = jiwer.process_words(reference, heard)
    return measured.substitutions + measured.deletions + measured.insertions


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, Estimate]:
    """The four metrics with their intervals."""

    spoken = [row for row in rows if row.words]
    wer = Estimate(None, 0, None)
    if spoken:
        value, *interval = bootstrap_ratio([row.errors for row in spoken], [row.words for row in spoken], seed)
        wer = Estimate(value, len(spoken), tuple(interval))
    return {
        "answer_accuracy_text": share([row.correct_text for row in rows]),
        "answer_accuracy_speech": share([row.correct_speech for row in rows]),
        "speech_wer": wer,
        "broken_audio": share([row.utterance.broken is not None for row in rows]),
    }


def by_column(rows: Sequence[Row], column: str) -> dict[str, dict[str, Estimate]]:
    """The metrics by a column of the rows, such as `difficulty`."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(str(row.example.columns.get(column)), []).append(row)
    return {value: summarise(parts[value]) for value in sorted(parts)}
