import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.prosody.measure import Prosody
from elocute.prosody.schema import Dimension, load_schema
from elocute.prosody.targets import NotMeasured, target_of_bounds, target_of_recordings

SPEED = load_schema().dimensions["speed"]  # Slow, Medium, Fast at 3.3 and 5.9 syllables a second
PLAIN = Prosody(12.0, 4.4, 120.0, 6.0, -20.0, 0.6, 0.2, 0.0, 2.0)
MOOD = Dimension(name="mood", description="", labels={"calm": "", "glad": "", "cross": ""})


def at(rate: float) -> Prosody:
    return replace(PLAIN, syllables_per_second=rate)


def voices(rng, n=40):
    """Calm: low and narrow; glad: high and wide; cross: as high as calm, and loud."""
    centres = {"calm": (110, 4, -25), "glad": (220, 10, -20), "cross": (115, 5, -12)}
    for label, (pitch, width, energy) in centres.items():
        for _ in range(n):
            yield {"mood": label}, replace(
                PLAIN, pitch_median=pitch * 2 ** rng.normal(0, 0.1), pitch_range=width + rng.normal(0, 1),
                energy=energy + rng.normal(0, 2),
            )  # fmt: skip


def test_bounds_give_each_label_a_middle_and_a_width():
    target = target_of_bounds(SPEED)
    middle = math.sqrt(3.3 * 5.9)
    assert np.exp(target.mean[:, 0]) == pytest.approx([middle * 3.3 / 5.9, middle, middle * 5.9 / 3.3])
    assert target.closeness("Medium", at(middle)) == pytest.approx(1)
    assert target.closeness("Medium", at(3.3)) == pytest.approx(0.5) == target.closeness("Medium", at(5.9))
    assert [target.label(at(rate)) for rate in (2, 3.29, 3.31, 5.8, 5.91, 30)] == [
        "Slow", "Slow", "Medium", "Medium", "Fast", "Fast",
    ]  # fmt: skip


def test_too_much_is_worth_little_too():
    target = target_of_bounds(SPEED)
    best = float(np.exp(target.mean[2, 0]))
    credits = [target.closeness("Fast", at(rate)) for rate in (best / 4, best / 2, best, 2 * best, 4 * best)]
    assert credits[0] < credits[1] < credits[2] > credits[3] > credits[4]
    assert credits[1] == pytest.approx(credits[3]) and credits[0] > 0


@settings(max_examples=30)
@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_closeness_falls_with_the_distance(one, other):
    target = target_of_bounds(SPEED)
    place = target.mean[1, 0]
    near, far = sorted((one, other), key=lambda rate: abs(math.log(rate) - place))
    assert 1 >= target.closeness("Medium", at(near)) >= target.closeness("Medium", at(far)) > 0


def test_recordings_give_targets_that_tell_labels_apart():
    measures = ["pitch_median", "pitch_range", "energy"]
    target = target_of_recordings(MOOD, measures, voices(np.random.default_rng(0)))
    fresh = list(voices(np.random.default_rng(1)))
    right = [target.label(prosody) == labels["mood"] for labels, prosody in fresh]
    assert np.mean(right) > 0.95
    for labels, prosody in fresh[::20]:
        p = target.probabilities(prosody)
        assert p.sum() == pytest.approx(1) and p.argmax() == list(MOOD.labels).index(labels["mood"])
        others = [label for label in MOOD.labels if label != labels["mood"]]
        assert all(target.closeness(labels["mood"], prosody) > target.closeness(other, prosody) for other in others)


def test_probabilities_equal_their_naive_twin():
    measures = ["pitch_median", "energy"]
    known = list(voices(np.random.default_rng(0)))
    target = target_of_recordings(MOOD, measures, known)
    prosody, likelihoods = known[5][1], []
    for label in MOOD.labels:
        own = [p for labels, p in known if labels["mood"] == label]
        density = 1.0
        for x, values in (
            (math.log(prosody.pitch_median), [math.log(p.pitch_median) for p in own]),
            (prosody.energy, [p.energy for p in own]),
        ):
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            density *= math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        likelihoods.append(density)
    naive = np.array(likelihoods) / sum(likelihoods)
    np.testing.assert_allclose(target.probabilities(prosody), naive, rtol=1e-9)


def test_equal_recordings_leave_room_around_them():
    target = target_of_recordings(MOOD, ["energy"], [({"mood": label}, PLAIN) for label in MOOD.labels] * 3)
    assert target.closeness("calm", replace(PLAIN, energy=-19.5)) == pytest.approx(0.5)


def test_what_has_no_voice_is_not_measured():
    with pytest.raises(NotMeasured, match="syllables_per_second"):
        target_of_bounds(SPEED).closeness("Slow", replace(PLAIN, syllables_per_second=None))


def test_targets_out_of_nothing_are_refused():
    with pytest.raises(InputError, match="mood: expected a measure and at least two bounds"):
        target_of_bounds(MOOD)
    some = [({"mood": "calm"}, PLAIN)] * 3 + [({"mood": "glad"}, replace(PLAIN, energy=None))] * 3
    with pytest.raises(InputError, match="mood: expected at least 3 recordings of each label, found glad 0, cross 0"):
        target_of_recordings(MOOD, ["energy"], some)
