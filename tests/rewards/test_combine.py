import math
import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from answers import answer
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError, RunError
from elocute.recipe.rewards import RuleSpec
from elocute.rewards.combine import Gate, RewardMixer, Weighted, build_mixer
from elocute.rewards.outcome import Invalid, Outcome, Scored, Unavailable


@dataclass
class Given:
    """Gives the outcomes it was given, looked up by the answer's text."""

    name: str
    outcomes: list[Outcome]
    low: float = 0.0
    high: float = 1.0
    closed: list = field(default_factory=list)

    def __call__(self, answers):
        return [self.outcomes[int(a.utterance.text)] for a in answers]

    def close(self):
        self.closed.append(True)


def batch(n):
    return [answer(str(i)) for i in range(n)]


def scored(*values):
    return [Scored(v) for v in values]


def test_raw_is_a_weighted_sum_with_a_declared_range():
    a, b = Given("a", scored(0, 1)), Given("b", scored(5, 2), 1, 5)
    mixer = RewardMixer([Weighted(a, 0.7), Weighted(b, 0.3)])
    assert (mixer.low, mixer.high) == pytest.approx((0.3, 2.2))
    judged = mixer(batch(2), [0, 0])
    assert judged.values == pytest.approx([1.5, 1.3])
    assert judged.counts == {"scored": 2, "invalid": 0, "unavailable": 0}
    assert judged.sums == {"a": (1.0, 2), "b": (7.0, 2)}
    assert judged.outcomes == {"a": a.outcomes, "b": b.outcomes}


def test_group_scale_standardises_each_reward_within_its_prompt():
    mixer = RewardMixer([Weighted(Given("a", scored(0, 1, 1, 1)))], scale="group", invalid_penalty=-2)
    assert mixer.low is None and mixer.high is None
    values = mixer(batch(4), ["p", "p", "q", "q"]).values
    assert values == pytest.approx([-0.5 / 0.5001, 0.5 / 0.5001, 0, 0])


def test_penalty_for_invalid_no_value_for_unavailable():
    a = Given("a", [Scored(1), Invalid("no end"), Unavailable("500"), Invalid("both"), Scored(0)])
    b = Given("b", [Scored(1), Scored(1), Scored(1), Unavailable("500"), Scored(0)])
    judged = RewardMixer([Weighted(a), Weighted(b)], invalid_penalty=0.25)(batch(5), [0] * 5)
    assert judged.values == [2.0, 0.25, None, 0.25, 0.0]
    assert judged.combined[1:4] == [Invalid("no end"), Unavailable("500"), Invalid("both")]
    assert judged.counts == {"scored": 2, "invalid": 2, "unavailable": 1}


def test_an_invalid_or_unavailable_answer_does_not_move_its_groups_statistics():
    a = Given("a", [Scored(0), Scored(1), Invalid("x"), Unavailable("y")])
    mixer = RewardMixer([Weighted(a)], scale="group", invalid_penalty=-2)
    values = mixer(batch(4), [0] * 4).values
    assert values == pytest.approx([-0.5 / 0.5001, 0.5 / 0.5001, -2, None])


def test_a_gate_closes_to_the_lowest_value():
    gate, gated = Given("right", scored(0, 1, 0)), Given("voice", [Scored(4), Scored(4), Unavailable("500")], 1, 5)
    parts = [Weighted(gate, 0), Weighted(gated, 1, Gate("right", 1))]
    judged = RewardMixer(parts)(batch(3), [0] * 3)
    assert judged.values == [1, 4, 1]  # behind a closed gate it does not matter that the judge fell silent
    assert judged.outcomes["voice"][0] == Scored(4)


def test_an_unknown_gate_makes_the_answer_unavailable():
    right, voice = Given("right", [Unavailable("x"), Scored(1)]), Given("voice", scored(1, 1))
    parts = [Weighted(right, 0), Weighted(voice, 1, Gate("right", 1))]
    assert RewardMixer(parts)(batch(2), [0, 0]).values == [None, 1]


def test_a_reward_of_weight_zero_is_only_measured():
    parts = [Weighted(Given("a", scored(1, 0))), Weighted(Given("m", [Unavailable("x")] * 2), 0)]
    judged = RewardMixer(parts)(batch(2), [0, 0])
    assert judged.values == [1, 0] and judged.sums["m"] == (0.0, 0)


def test_a_dead_judge_stops_the_run_in_one_line():
    outcomes = [Unavailable("HTTP 500"), Unavailable("HTTP 500"), Unavailable("late"), Scored(1)]
    mixer = RewardMixer([Weighted(Given("judge", outcomes))])
    judged = mixer(batch(4), [0] * 4)
    assert judged.values == [None, None, None, 1] and judged.silent == {"judge": (3, 4)}
    said = "reward judge: 3 of 4 judgements are unavailable (more than 50%), most often: HTTP 500"
    with pytest.raises(RunError, match=f"^{re.escape(said)}$"):
        mixer.check_alive(judged, judged.silent)
    half = mixer([answer("2"), answer("3")], [0, 0])
    mixer.check_alive(half, half.silent)  # exactly the share is tolerated


def test_a_dead_judge_is_seen_among_invalid_answers():
    mixer = RewardMixer([Weighted(Given("judge", [Invalid("no end")] * 9 + [Unavailable("HTTP 500")]))])
    judged = mixer(batch(10), [0] * 10)
    assert judged.silent == {"judge": (1, 1)}
    with pytest.raises(RunError, match="1 of 1"):
        mixer.check_alive(judged, judged.silent)


def test_a_judge_is_dead_for_all_processes_or_for_none():
    """What counts are the sums, given as floats: a process stops also when its own answers were all judged."""
    mixer = RewardMixer([Weighted(Given("judge", [Unavailable("HTTP 500")] * 8 + scored(*[1] * 8)))])
    silent, fine = mixer(batch(8), [0] * 8), mixer([answer(str(8 + i)) for i in range(8)], [0] * 8)
    assert (silent.silent, fine.silent) == ({"judge": (8, 8)}, {"judge": (0, 8)})
    for judged in (silent, fine):
        mixer.check_alive(judged, {"judge": [8.0, 16.0]})
    for judged, often in ((silent, "HTTP 500"), (fine, "see the other processes")):
        with pytest.raises(RunError, match=f"9 of 16 judgements .* most often: {often}$"):
            mixer.check_alive(judged, {"judge": [9.0, 16.0]})


def test_without_an_answer_to_judge_no_judge_is_dead():
    mixer = RewardMixer([Weighted(Given("judge", [Invalid("no end")] * 2))])
    judged = mixer(batch(2), [0, 0])
    assert judged.silent == {"judge": (0, 0)}
    mixer.check_alive(judged, judged.silent)


def test_only_rewards_that_decide_can_stop_the_run():
    outcomes = [Unavailable("x")] * 2
    parts = [Weighted(Given("measured", outcomes), 0), Weighted(Given("gate", outcomes), 0)]
    mixer = RewardMixer([*parts, Weighted(Given("a", scored(1, 1)), 1, Gate("gate", 1))])
    judged = mixer(batch(2), [0, 0])
    assert judged.silent == {"gate": (2, 2), "a": (0, 2)}
    with pytest.raises(RunError, match="^reward gate: 2 of 2"):
        mixer.check_alive(judged, judged.silent)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([Weighted(Given("a", [])), Weighted(Given("a", []))], {}, "two are called 'a'"),
        ([Weighted(Given("a", []), 0)], {}, "expected a weight above 0"),
        ([Weighted(Given("a", []), 0, credited=True)], {}, "a credit with reward_mix.scale=group"),
        ([Weighted(Given("a", []), -1)], {}, "at least 0"),
        ([], {}, "expected a weight above 0"),
        ([Weighted(Given("a", []), 1, Gate("b", 1))], {}, "a: gate: 'b' is not the name"),
        ([Weighted(Given("a", []), 1, Gate("a", 1))], {}, "a: gate: 'a' is not the name"),
        ([Weighted(Given("a", []))], {"scale": "group"}, "declare a penalty"),
        ([Weighted(Given("a", []))], {"invalid_penalty": -1}, r"expected a value in \[0, 1\]"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(parts, options, message):
    with pytest.raises(InputError, match=message):
        RewardMixer(parts, **options)


def test_a_mix_of_credits_alone_tells_only_broken_answers_apart():
    """What a credited reward says counts elsewhere (training/credit.py), and what it cannot judge has no value."""
    heard = [Scored(0.2), Scored(0.9), Invalid("no end"), Unavailable("x")]
    mixer = RewardMixer([Weighted(Given("a", heard), 0, credited=True)], scale="group", invalid_penalty=-2)
    judged = mixer(batch(4), [0] * 4)
    assert judged.values == [0, 0, -2, None] and judged.silent == {"a": (1, 3)}


@pytest.mark.parametrize("outcomes", [scored(2), scored(math.nan), []])
def test_a_reward_that_breaks_its_promise_stops_the_run(outcomes):
    reward = Given("a", [])
    reward.__class__ = type("Fixed", (Given,), {"__call__": lambda self, answers: outcomes})
    with pytest.raises(RunError, match="^reward a: "):
        RewardMixer([Weighted(reward)])(batch(1), [0])


def test_close_ends_every_reward():
    reward = Given("a", [])
    RewardMixer([Weighted(reward)]).close()
    assert reward.closed


def test_from_specs():
    mix = SimpleNamespace(scale="raw", invalid_penalty=None, max_unavailable=0.5)
    mixer = build_mixer([RuleSpec(kind="rule", column="answer", weight=2)], mix)
    assert (mixer.low, mixer.high) == (0, 2)
    assert mixer([answer("4", answer="four")], [0]).values == [2.0]


outcome = st.one_of(
    st.floats(0, 1).map(Scored), st.just(Invalid("bad")), st.just(Unavailable("late"))
)  # fmt: skip
weights = st.lists(st.floats(0.01, 10), min_size=2, max_size=2)


@given(st.lists(st.tuples(outcome, outcome, st.integers(0, 2)), min_size=1, max_size=12), weights, st.randoms())
def test_order_does_not_matter_and_raw_values_stay_in_range(rows, weights, random):
    parts = [Weighted(Given(n, [r[k] for r in rows]), w) for k, (n, w) in enumerate(zip("ab", weights, strict=True))]
    order = list(range(len(rows)))
    random.shuffle(order)
    for scale in ("raw", "group"):
        penalty = None if scale == "raw" else -1.0
        mixer = RewardMixer(parts, scale=scale, invalid_penalty=penalty, max_unavailable=1)
        straight = mixer(batch(len(rows)), [r[2] for r in rows])
        shuffled = mixer([answer(str(i)) for i in order], [rows[i][2] for i in order])
        assert [straight.values[i] for i in order] == pytest.approx(shuffled.values, abs=1e-9)
        assert straight.counts == shuffled.counts
        if scale == "raw":
            assert all(mixer.low <= v <= mixer.high for v in straight.values if v is not None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_group_scale_equals_its_naive_twin(values):
    mixer = RewardMixer([Weighted(Given("a", scored(*values)), 2.0)], scale="group", invalid_penalty=0)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    naive = [2.0 * (v - mean) / (std + 1e-4) for v in values]
    np.testing.assert_allclose(mixer(batch(len(values)), [0] * len(values)).values, naive, atol=1e-9)


def naive_group_mix(rows, groups, weights, threshold, penalty):
    """Twin of the group scale with a gate, in plain float64: z-score in the group, then weight, then add.

    rows [N] of (content, style); style is worth its lowest, 0, where content is below the threshold.
    """
    values = []
    rows = [(c, (s if c.value >= threshold else Scored(0.0)) if isinstance(c, Scored) else c) for c, s in rows]
    proper = [all(isinstance(o, Scored) for o in row) for row in rows]
    for i, row in enumerate(rows):
        if any(isinstance(o, Invalid) for o in row):
            values.append(penalty)
        elif not proper[i]:
            values.append(None)
        else:
            total = 0.0
            for k, weight in enumerate(weights):
                members = [j for j in range(len(rows)) if proper[j] and groups[j] == groups[i]]
                own = [rows[j][k].value for j in members]
                mean = sum(own) / len(own)
                std = math.sqrt(sum((v - mean) ** 2 for v in own) / len(own))
                total += weight * (own[members.index(i)] - mean) / (std + 1e-4)
            values.append(total)
    return values


@given(st.lists(st.tuples(outcome, outcome, st.integers(0, 2)), min_size=1, max_size=12), weights)
def test_group_scale_with_a_gate_equals_its_naive_twin(rows, weights):
    content, style = (Given(name, [row[k] for row in rows]) for k, name in enumerate(("content", "style")))
    parts = [Weighted(content, weights[0]), Weighted(style, weights[1], Gate("content", 0.5))]
    mixer = RewardMixer(parts, scale="group", invalid_penalty=-3.0, max_unavailable=1)
    found = mixer(batch(len(rows)), [row[2] for row in rows]).values
    naive = naive_group_mix([row[:2] for row in rows], [row[2] for row in rows], weights, 0.5, -3.0)
    assert [v is None for v in found] == [v is None for v in naive]
    np.testing.assert_allclose(
        [v for v in found if v is not None], [v for v in naive if v is not None], atol=1e-8, rtol=1e-9
    )


def paper(wer, matches):
    """RLAIF-SPA's reward, arXiv 2510.14628."""
    return 0.3 * (1 - wer) + 0.7 * (matches / 4)


def test_the_papers_reward_is_a_mix_of_two():
    cases = [(0.0, 4), (0.25, 3), (0.5, 0), (1.0, 4)]
    content = Given("asr", scored(*[1 - wer for wer, _ in cases]))
    judge = Given("judge", scored(*[matches / 4 for _, matches in cases]))
    mixer = RewardMixer([Weighted(content, 0.3), Weighted(judge, 0.7)])
    assert mixer(batch(4), [0] * 4).values == pytest.approx([paper(*case) for case in cases], abs=1e-12)
    assert (mixer.low, mixer.high) == (0, 1)


def test_defect_rlaif_5_a_flipped_label_does_not_outweigh_the_words():
    """In the paper's sum one label weighs as much as a WER of 0.58: a voice with half its words lost wins by one lucky
    label. Behind a gate style counts only where the words are there."""
    clear, garbled = (0.1, 2), (0.6, 3)
    assert paper(*garbled) > paper(*clear)
    assert paper(0, 1) - paper(0, 0) == pytest.approx(paper(0, 0) - paper(0.175 / 0.3, 0))
    content = Given("asr", scored(1 - clear[0], 1 - garbled[0]))
    judge = Given("judge", scored(clear[1] / 4, garbled[1] / 4))
    parts = [Weighted(content, 0.3), Weighted(judge, 0.7, Gate("asr", 0.8))]
    for scale in ("raw", "group"):
        one, other = RewardMixer(parts, scale=scale, invalid_penalty=0)(batch(2), [0, 0]).values
        assert one > other


def test_spread_is_that_within_groups():
    parts = [Weighted(Given("a", [*scored(0, 1, 0.5, 0.5), Invalid("x"), Scored(1)]))]
    judged = RewardMixer(parts)(batch(6), [0, 0, 1, 1, 2, 2])
    assert judged.spread == {"a": (0.5, 2)}  # a group of one has none
    constant = RewardMixer([Weighted(Given("a", scored(*[0.1] * 6)))])(batch(6), [0, 0, 0, 1, 1, 1])
    assert constant.spread == {"a": (0.0, 2)}


class Hears(Given):
    """The same of one that hears labels."""

    dimensions = ("emotion", "speed")


def test_labels_heard_are_counted_by_what_was_asked_for():
    asked = [("Happy", "Slow"), ("Happy", "Slow"), ("Sad", "Slow"), ("Sad", "Slow"), ("Sad", "Slow")]
    answers = [answer(str(i), labels={"emotion": a, "speed": b}) for i, (a, b) in enumerate(asked)]
    answers[3].example.columns["labels"]["emotion"] = None
    heard = [("Happy", "Fast"), ("Sad", "Fast"), ("Sad", "Fast"), (None, "Fast"), None]
    own = [Scored(1, {"heard": {"emotion": a, "speed": b}}) for a, b in heard[:3]]
    own += [Scored(1, {"heard": {"speed": "Fast"}}), Invalid("no end")]
    judged = RewardMixer([Weighted(Hears("judge", own)), Weighted(Given("asr", scored(*[1] * 5)))])(answers, [0] * 5)
    emotions = {("Happy", "Happy"): 1, ("Happy", "Sad"): 1, ("Sad", "Sad"): 1}
    assert judged.labels == {"judge/emotion": emotions, "judge/speed": {("Slow", "Fast"): 4}}


def test_what_rewards_measure_is_summed():
    given = Given("a", [Scored(1, {"wer": 0.25}), Scored(0, {"wer": 1.0}), Scored(0, {"wer": None}), Invalid("x")])
    given.measures = ("wer",)
    assert RewardMixer([Weighted(given)])(batch(4), [0] * 4).measures == {"a/wer": (1.25, 2)}
