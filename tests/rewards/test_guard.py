import dataclasses

import numpy as np
import pytest
from answers import answer
from voices import RATE, voice

from elocute.errors import InputError
from elocute.prosody.measure import measure
from elocute.recipe.rewards import GuardSpec
from elocute.rewards.build import build_reward
from elocute.rewards.combine import RewardMixer, Weighted
from elocute.rewards.guard import GuardReward

TEXT = "the cat is on the mat"


def spoken(waveform):
    return answer("", waveform=waveform.astype(np.float32), rate=RATE, question=TEXT)


FINE = voice(120, 1.4)
BROKEN = {
    "phones_per_second": voice(120, 0.3),
    "pitch_range": voice(120, 1.4, octaves=0),
    "silence_share": np.concatenate([FINE, np.zeros(3 * RATE)]),
    "clipping_share": np.clip(20 * FINE, -1, 1),
}


def test_a_sound_voice_passes_and_everything_measured_is_kept():
    (outcome,) = build_reward(GuardSpec(kind="guard"))([spoken(FINE)])
    assert outcome.value == 1 and outcome.detail == dataclasses.asdict(measure(FINE, RATE, TEXT))


@pytest.mark.parametrize("limit", BROKEN)
def test_what_leaves_its_limits_is_named(limit):
    (outcome,) = build_reward(GuardSpec(kind="guard"))([spoken(BROKEN[limit])])
    assert outcome.value == 0 and outcome.detail["broken"] == [limit]


def test_what_cannot_be_measured_breaks_its_limit():
    guard = GuardReward("guard", {"pitch_range": (0, None), "seconds": (None, 2)})
    (outcome,) = guard([spoken(np.zeros(RATE))])
    assert outcome.detail["broken"] == ["pitch_range"]


def test_its_means_are_measured_and_it_may_be_constant():
    guard = build_reward(GuardSpec(kind="guard", weight=0.5))
    judged = RewardMixer([Weighted(guard, 0.5)])([spoken(FINE), spoken(BROKEN["silence_share"])], [0, 0])
    assert judged.values == [0.5, 0.0] and judged.spread == {}
    total, count = judged.measures["guard/seconds"]
    assert (total, count) == (pytest.approx(1.4 + 4.4, abs=1e-3), 2)


def test_an_unknown_limit_is_refused():
    with pytest.raises(InputError, match="limits: loudness: expected one of phones_per_second"):
        GuardReward("guard", {"loudness": (0, 1)})
