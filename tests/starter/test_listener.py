"""The shipped listeners hear what the recordings that ship are labelled with, and the shipped ear their words."""

from statistics import fmean, median

import pytest

from elocute.data.audio import load_audio
from elocute.data.rows import read_rows
from elocute.data.types import Answer, Utterance
from elocute.recipe.rewards import AsrSpec
from elocute.rewards.build import build_reward
from elocute.rewards.emotion import EmotionReward
from elocute.speech.codec import StarterCodec
from starter.train_listener import HERE

RECORDINGS = HERE / "expressive" / "recordings.jsonl"


@pytest.mark.parametrize(("dimension", "least"), [("emotion", 0.85), ("speed", 0.7)])
def test_the_shipped_listeners_hear_the_labels_through_the_codec(dimension, least):
    codec, answers = StarterCodec.load(HERE / "codec"), []
    for row in read_rows(RECORDINGS):
        sound = codec.decode(codec.encode(*load_audio(row.target_audio.path)))
        answers.append(Answer(row, Utterance("", sound, codec.sample_rate)))
    listener = EmotionReward(dimension, HERE / "expressive" / "listener" / dimension, dimension=dimension)
    heard = [outcome.detail["heard"][dimension] for outcome in listener(answers)]
    wanted = [answer.example.columns["labels"][dimension] for answer in answers]
    assert len(wanted) == 36 and set(heard) == set(wanted)
    assert sum(one == other for one, other in zip(heard, wanted, strict=True)) / len(wanted) >= least


def test_the_shipped_ear_finds_what_was_said_likelier_than_what_was_not():
    codec, rows = StarterCodec.load(HERE / "codec"), read_rows(RECORDINGS)[:12]
    ear = {"kind": "transformers", "path": HERE / "expressive" / "ear"}
    reward = build_reward(AsrSpec(kind="asr", ear=ear, form="likelihood", reference="prompt"))
    sounds = [codec.decode(codec.encode(*load_audio(row.target_audio.path))) for row in rows]
    right, wrong = (
        reward([Answer(row, Utterance("", sound, codec.sample_rate)) for row, sound in zip(rows, said, strict=True)])
        for said in (sounds, sounds[1:] + sounds[:1])
    )
    assert median(outcome.value for outcome in right) > 0.9 and max(outcome.value for outcome in wrong) < 0.5
    assert fmean(outcome.detail["wer"] for outcome in right) < 0.2
