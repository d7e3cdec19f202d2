"""Stories aloud: sentences stand on the codec's grid, and what is said in time is known."""

import numpy as np
import pytest

from elocute.data.audio import load_audio, save_wav
from elocute.rewards.pocketsphinx_ear import make_decoder
from elocute.speech.features import BLOCK
from elocute.speech.starter_units import StarterUnits
from starter.make_stories import words_before
from starter.telling import recording, told

QUESTION = "starter/audio/heldout-sum-0000.question.wav"
WORDS = "four plus forty eight"


def test_a_sentence_is_encoded_the_same_wherever_it_stands(tmp_path):
    units = StarterUnits.load("starter/units")
    spoken, _ = load_audio(QUESTION)
    for text, part in (("one", spoken[: 10 * BLOCK]), ("two", spoken[10 * BLOCK : 20 * BLOCK])):
        pause = np.zeros(2 * BLOCK, np.float32)
        save_wav(recording(text, folder=tmp_path), np.concatenate([part, pause]), 16000)
    alone = units.encode(told(["two"], folder=tmp_path), 16000)
    behind = units.encode(told(["one", "two"], folder=tmp_path), 16000)
    assert behind[-len(alone) + 1 :].tolist() == alone[1:].tolist()


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ""), (60.0, WORDS)])
def test_words_before(seconds, said):
    waveform, _ = load_audio(QUESTION)
    assert words_before(seconds, waveform, WORDS, make_decoder({})) == said


def test_words_come_one_after_another():
    waveform, rate = load_audio(QUESTION)
    aligner = make_decoder({})
    counts = [len(words_before(s, waveform, WORDS, aligner).split()) for s in np.arange(0, len(waveform) / rate, 0.1)]
    assert counts == sorted(counts) and set(counts) >= {0, 1, 2, 3}
