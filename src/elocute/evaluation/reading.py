"""Reading aloud, measured: are the words there, do they sound as the labels ask, is it still a voice.

Every answer gives numbers, each a value and its weight; a metric is the sum of the values over that of the weights.
- wer: word errors over words, between the text and what the ear hears, both normalised; of a broken answer all words
  are missed.
- label_alignment, label_alignment/DIMENSION: share of the labels asked for that the evaluation's own listeners hear. An
  answer that is no proper one has none of its labels. What a listener could not judge (Unavailable) is left out and
  counted.
- broken_audio: share of answers that are no proper ones (no end, units in the wrong place, no audio) or leave one of
  the default limits of the reward `guard` (recipe/rewards.py), as silence does.
- f0_range (semitones), seconds, syllables_per_second: means over proper answers, as in prosody/measure.py; where there
  is no voice there is no F0 range.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elocute.data.normalise import normalise
from elocute.data.types import Answer, Example, Utterance
from elocute.evaluation.pieces import in_pieces
from elocute.evaluation.spoken_qa import word_errors
from elocute.evaluation.statistics import (
    Estimate,
    bootstrap_ratio,
    mcnemar_exact,
    paired_permutation,
    share,
    wilson,
)
from elocute.progress import Progress
from elocute.recipe.rewards import GuardSpec
from elocute.rewards.asr import Ear, asked, hear
from elocute.rewards.build import build_reward
from elocute.rewards.labels import LabelListener, can_judge
from elocute.rewards.outcome import Invalid, Outcome, Scored, Unavailable

SEED = 0
"""Of bootstrap and permutations."""
MEANS = {"f0_range": "pitch_range", "seconds": "seconds", "syllables_per_second": "syllables_per_second"}
"""Metric: what of elocute.prosody.measure.Prosody it is the mean of."""
GUARD = GuardSpec(kind="guard")


@dataclass(frozen=True)
class Reading:
    """One row, read aloud and heard.

    heard: the words; errors: of `words` words. labels: by dimension the label that was heard, None in a broken answer;
    unjudged: by dimension why no label is known. measured: elocute.prosody.measure.Prosody, of a proper answer.
    broken: why it counts as broken, or None.
    """

    example: Example
    utterance: Utterance
    heard: str
    errors: int
    words: int
    labels: dict[str, str | None]
    unjudged: dict[str, str]
    measured: dict[str, float | None] | None
    broken: str | None

    def to_json(self, audio: str | None) -> dict[str, Any]:
        """A line of samples/: all that metrics are made of; audio: the WAV's place."""
        return {
            "id": self.example.id,
            "question_text": asked(Answer(self.example, self.utterance), "prompt"),
            "labels": self.example.columns.get("labels") or {},
            "audio": audio,
            "heard": self.heard,
            "errors": self.errors,
            "words": self.words,
            "labels_heard": self.labels,
            "unjudged": self.unjudged,
            "measured": self.measured,
            "broken": self.broken,
        }


def listen(
    examples: Sequence[Example],
    utterances: Sequence[Utterance],
    ear: Ear,
    listeners: Sequence[LabelListener],
    progress: Progress = lambda *_: None,
) -> list[Reading]:
    """Hear and measure each example's utterance; a listener hears those that it has something to say about."""
    answers = [Answer(example, utterance) for example, utterance in zip(examples, utterances, strict=True)]
    guard = in_pieces("measure", answers, build_reward(GUARD), progress)
    proper = [index for index, outcome in enumerate(guard) if isinstance(outcome, Scored)]
    texts = in_pieces("hear", [answers[i] for i in proper], lambda piece: hear(ear, piece), progress)
    heard = dict(zip(proper, texts, strict=True))
    labels: dict[int, dict[str, str | None]] = defaultdict(dict)
    unjudged: dict[int, dict[str, str]] = defaultdict(dict)
    for listener in listeners:
        own = [index for index, example in enumerate(examples) if can_judge(listener, example)]
        outcomes = in_pieces(listener.name, [answers[i] for i in own], listener, progress)
        for index, outcome in zip(own, outcomes, strict=True):
            asked_for = [name for name in listener.dimensions if (examples[index].columns["labels"]).get(name)]
            if isinstance(outcome, Unavailable):
                unjudged[index] |= dict.fromkeys(asked_for, outcome.reason)
            else:
                found = outcome.detail["heard"] if isinstance(outcome, Scored) else {}
                labels[index] |= {name: found.get(name) for name in asked_for}
    return [
        _reading(answer, heard.get(index, ""), labels[index], unjudged[index], guard[index])
        for index, answer in enumerate(answers)
    ]


def _reading(
    answer: Answer, heard: str, labels: dict[str, str | None], unjudged: dict[str, str], guard: Outcome
) -> Reading:
    text = normalise(asked(answer, "prompt"))
    words = len(text.split())
    if isinstance(guard, Invalid):
        return Reading(answer.example, answer.utterance, "", words, words, labels, unjudged, None, guard.reason)
    measured = dict(guard.detail)
    beyond = measured.pop("broken", None)
    broken = f"outside its limits: {', '.join(beyond)}" if beyond else None
    errors = word_errors(text, normalise(heard))
    return Reading(answer.example, answer.utterance, heard, errors, words, labels, unjudged, measured, broken)


def numbers(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Of a line of samples/: metric → (value, weight)."""
    hits = {name: float(heard == row["labels"][name]) for name, heard in row["labels_heard"].items()}
    found = {"wer": (row["errors"], row["words"]), "broken_audio": (float(row["broken"] is not None), 1)}
    if hits:
        found["label_alignment"] = (sum(hits.values()), len(hits))
    found |= {f"label_alignment/{name}": (hit, 1) for name, hit in hits.items()}
    measured = row["measured"] or {}
    return found | {
        metric: (measured[name], 1) for metric, name in MEANS.items() if measured.get(name) is not None
    }  # fmt: skip


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Every metric with its interval over rows, n of them: Wilson's for shares, else a bootstrap."""
    found = [numbers(row) for row in rows]
    names = dict.fromkeys([*(name for row in found for name in row), *MEANS])
    return {name: _estimate(name, [row[name] for row in found if name in row]) for name in names}


def _estimate(name: str, pairs: Sequence[tuple[float, float]]) -> Estimate:
    if not pairs:
        return Estimate(None, 0, None)
    if _is_share(name):
        return share([value > 0 for value, _ in pairs])
    value, *interval = bootstrap_ratio(*zip(*pairs, strict=True), SEED)
    if name == "label_alignment" and value in (0, 1):  # resampling sees no spread: as if a row were one label
        interval = wilson(round(value) * len(pairs), len(pairs))
    return Estimate(value, len(pairs), tuple(interval))


def paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Metric → {"p", "n"}: of no change on the n rows that were measured in both, as many words and labels each.

    Shares by McNemar's exact test, all else by permuting what is before and what is after in each row.
    """
    olds, news = ({row["id"]: numbers(row) for row in rows} for rows in (before, after))
    both = [(olds[id], news[id]) for id in olds if id in news]
    found = {}
    for name in dict.fromkeys(name for old, _ in both for name in old):
        values = [
            (old[name][0], new[name][0])
            for old, new in both
            if name in old and name in new and old[name][1] == new[name][1]
        ]
        if values:
            old, new = zip(*values, strict=True)
            p = mcnemar_exact(old, new) if _is_share(name) else paired_permutation(old, new, SEED)
            found[name] = {"p": p, "n": len(values)}
    return found


def why_unjudged(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Of each dimension: why a label could not be heard → how often."""
    found: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        for name, reason in row["unjudged"].items():
            found[name][reason] += 1
    return {name: dict(counts.most_common()) for name, counts in found.items()}


def _is_share(name: str) -> bool:
    return name == "broken_audio" or name.startswith("label_alignment/")
