"""The starter's expressive speech: sentences, styles, and what a model is told of them."""

import random
from collections import Counter

import numpy as np
import pytest

from elocute.data.rows import read_rows
from elocute.prosody.pitch import f0_track
from elocute.prosody.schema import load_schema
from starter.make_expressive import SPLITS, drawn, recording
from starter.styles import EMOTIONS, RATES, STYLES, sentences
from starter.train_tts_lm import HERE, misled
from starter.voices import change_pitch

RATE = 16_000


def test_more_sentences_begin_with_the_same_ones():
    few, many = sentences(200, 3), sentences(900, 3)
    assert few == many[:200]
    assert len(set(many)) == 900


def test_splits_share_no_sentence_and_have_every_style_equally_often():
    rows = drawn()
    assert {split: len(own) for split, own in rows.items()} == SPLITS
    texts = [row["messages"][0]["content"] for own in rows.values() for row in own]
    assert len(set(texts)) == len(texts)
    for split, own in rows.items():
        counts = Counter((row["labels"]["emotion"], row["labels"]["speed"]) for row in own)
        assert set(counts.values()) == {SPLITS[split] // len(STYLES)}


@pytest.mark.parametrize(("name", "chance"), [("emotion", 1 / 4), ("speed", 1 / 3)])
def test_defect_rlaif_6_who_only_reads_the_sentences_guesses_their_labels(name, chance):
    """Naive Bayes on words, from the rows for post-training to those for evaluation: no better than chance."""
    learnt, asked = (
        [(set(row.messages[0].content.lower().split()), row.columns["labels"][name]) for row in read_rows(path)]
        for path in (HERE / "expressive/train.jsonl", HERE / "expressive/test.jsonl")
    )
    rows_of, seen = Counter(label for _, label in learnt), Counter()
    for words, label in learnt:
        seen.update((word, label) for word in words)

    def guess(words):
        return max(rows_of, key=lambda label: sum(np.log((seen[w, label] + 1) / (rows_of[label] + 2)) for w in words))

    right = sum(guess(words) == label for words, label in asked)
    spread = (len(asked) * chance * (1 - chance)) ** 0.5
    assert abs(right - len(asked) * chance) < 3 * spread
    telling = [
        (words | {label}, label) for words, label in asked
    ]  # were the label in the words, it would be read off them
    seen.update((label, label) for label in rows_of.elements())
    assert sum(guess(words) == label for words, label in telling) > 0.9 * len(asked)


def test_the_schema_has_just_the_styles_there_are():
    dimensions = load_schema(HERE / "expressive" / "schema.yaml").dimensions
    assert list(dimensions["emotion"].labels) == list(EMOTIONS)
    assert list(dimensions["speed"].labels) == list(RATES)


def test_a_recording_belongs_to_what_is_said_and_how(tmp_path):
    [a, b] = drawn()["base"][:2]
    assert recording(tmp_path, a) == recording(tmp_path, a | {"id": "other"})
    assert recording(tmp_path, a) != recording(tmp_path, a | {"labels": b["labels"] | {"emotion": "other"}})
    assert recording(tmp_path, a) != recording(tmp_path, b)


def voice(semitones: float = 3.0, seconds: float = 2.0) -> np.ndarray:
    """A buzz of about 120 Hz whose pitch goes up and down by so much."""
    time = np.arange(int(seconds * RATE)) / RATE
    f0 = 120 * 2 ** (semitones / 12 * np.sin(2 * np.pi * time))
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)


@pytest.mark.parametrize(("factor", "melody"), [(1.0, 0.3), (1.0, 1.8), (1.3, 0.5), (0.85, 1.0)])
def test_pitch_and_melody_change_by_what_was_asked(factor, melody):
    before, after = (
        np.log2(f0[f0 > 0]) * 12
        for f0 in (f0_track(sound, RATE, 160) for sound in (voice(), change_pitch(voice(), RATE, factor, melody)))
    )
    assert np.median(after) - np.median(before) == pytest.approx(12 * np.log2(factor), abs=0.4)
    widths = [np.subtract(*np.percentile(track, (90, 10))) for track in (before, after)]
    assert widths[1] / widths[0] == pytest.approx(melody, rel=0.12)


def test_labels_mislead_as_often_as_asked():
    schema, rng = load_schema(HERE / "expressive" / "schema.yaml"), random.Random(0)
    told = [misled({"emotion": "Happy", "speed": "Fast"}, schema, 0.4, rng) for _ in range(6000)]
    some = [labels for labels in told if labels]
    assert len(some) / len(told) == pytest.approx(0.9, abs=0.02)
    # right on purpose, or by chance
    assert np.mean([of["emotion"] == "Happy" for of in some]) == pytest.approx(0.4 + 0.6 / 4, abs=0.03)
    assert np.mean([of["speed"] == "Fast" for of in some]) == pytest.approx(0.4 + 0.6 / 3, abs=0.03)
