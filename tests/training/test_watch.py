import json
import logging

import numpy as np
import pytest

from elocute.prosody.schema import load_schema
from elocute.rewards.audio_judge import AudioJudgeReward
from elocute.rewards.combine import RewardMixer, Weighted
from elocute.training.metrics import alike
from elocute.training.watch import RULES, WINDOW, Watch, in_words
from tests.rewards.answers import answer


def run(watch, name, values):
    """The steps (from 1) after which this column's alarm rings."""
    return [step for step, v in enumerate(values, start=1) if f"alarm/{name}" in watch({"step": step, name: v})]


COLLAPSES = {
    "seconds": (2.0, 6.0), "phones_per_second": (12.0, 25.0), "silence_share": (0.1, 0.5),
    "clipping_share": (0.0, 0.1), "pitch_range": (8.0, 2.0), "similarity": (0.9, 0.5), "overall": (3.2, 2.0),
    "wer": (0.1, 0.6),
}  # fmt: skip


@pytest.mark.parametrize("measure", COLLAPSES)
def test_a_collapse_rings_and_stops_when_it_is_over(measure):
    fine, bad = COLLAPSES[measure]
    values = [fine] * 8 + [bad] * 8 + [fine] * 8
    rings = run(Watch(), f"measured/guard/{measure}", values)
    assert 9 <= rings[0] <= 13 and rings[-1] < 8 + 8 + WINDOW
    assert rings == list(range(rings[0], rings[-1] + 1))
    assert run(Watch(), f"measured/guard/{measure}", [fine, fine * 1.05] * 10) == []


def test_every_rule_has_a_collapse_here():
    assert COLLAPSES.keys() | {"invalid"} == RULES.keys()


def test_answers_that_break_ring_by_their_share():
    watch = Watch()
    for step in range(20):
        invalid = 0 if step < 10 else 8
        found = watch({"step": step, "outcomes/scored": 16 - invalid, "outcomes/invalid": invalid})
    assert found == {"alarm/outcomes/invalid": 1} and in_words("outcomes/invalid") == "answers break"


def test_defect_rlaif_4_a_constant_judge_is_found(caplog):
    """A judge that always says the same has no spread in any group; one that is right once in a while has."""
    with caplog.at_level(logging.WARNING):
        assert run(Watch(), "spread/judge", [0.0] * 7) == [5, 6, 7]
    (record,) = caplog.records
    assert record.getMessage() == (
        "step 5: judge: gave all answers of a group the same value in every group, which teaches nothing"
    )
    assert run(Watch(), "spread/judge", [0.0, 0.0, 0.0, 0.0, 0.02] * 3) == []
    assert run(Watch(), "spread/judge", [0.2] * 5 + [0.0] * 6) == [10, 11]


@pytest.mark.parametrize("hears", ["one", "both"])
def test_defect_rlaif_4_a_judge_that_hears_one_label_is_found_by_what_it_hears(hears):
    """Its likelihoods differ a little from answer to answer, so its reward is never quite constant, and in groups that
    are scaled its noise is as loud as anything."""
    schema, draws = load_schema().only(["emotion", "speed"]), np.random.default_rng(0)

    def listen(utterances, asked):
        found = []
        for number, _ in enumerate(utterances):
            emotion = np.array([0.9, 0.025, 0.025, 0.025, 0.025]) + draws.uniform(0, 1e-3, 5)
            speed = np.array([0.05, 0.9, 0.05]) if hears == "one" else np.roll([0.9, 0.05, 0.05], number % 2)
            found.append({"emotion": emotion / emotion.sum(), "speed": speed})
        return found

    labels = [{"emotion": emotion, "speed": speed} for emotion in ("Happy", "Sad") for speed in ("Slow", "Fast")]
    answers = [answer("", labels=own) for own in labels for _ in range(4)]
    mixer, watch = (
        RewardMixer([Weighted(AudioJudgeReward("judge", listen, schema))], scale="group", invalid_penalty=-1),
        Watch(),
    )
    for step in range(WINDOW):
        judged = mixer(answers, [number // 4 for number in range(16)])
        means = {f"spread/{name}": total / count for name, (total, count) in judged.spread.items()}
        means |= {f"alike/{name}": alike([counts]) for name, counts in judged.labels.items()}
        rings = watch({"step": step} | means)
    assert means["spread/judge"] > 0 and "alarm/spread/judge" not in rings
    assert rings == dict.fromkeys(["alarm/alike/judge/emotion"] + ["alarm/alike/judge/speed"] * (hears == "one"), 1)
    assert in_words("alike/judge/emotion") == "judge: heard the same emotion in all answers, whatever was asked for"


def test_a_dimension_that_is_heard_apart_now_and_then_does_not_ring():
    assert run(Watch(), "alike/judge/emotion", [1.0, 1.0, 1.0, 1.0, 0.9] * 3) == []
    assert run(Watch(), "alike/judge/emotion", [1.0, None] * 5) == [9, 10]


def test_steps_without_a_value_are_not_counted():
    assert run(Watch(), "spread/judge", [0.0, None] * 5) == [9, 10]
    assert run(Watch(), "measured/asr/heard", [1.0] * 5 + [100.0] * 5) == []


def test_a_run_that_goes_on_remembers(tmp_path, caplog):
    """And does not warn of what it had warned of."""
    lines = [{"step": i, "measured/guard/pitch_range": 8.0 if i < 6 else 1.0} for i in range(30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:8]))
    straight, resumed = Watch(), Watch()
    rings = [straight(line) for line in lines[:8]]
    assert rings[-1] and len(caplog.records) == 1
    caplog.clear()
    resumed.replay(tmp_path / "metrics.jsonl")
    Watch().replay(tmp_path / "nothing.jsonl")
    assert [straight(line) for line in lines[8:]] == [resumed(line) for line in lines[8:]]
    assert not caplog.records
