"""Numbers of what was read aloud: from sound to rows, from rows to metrics, and two moments compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.data.audio import load_audio
from elocute.data.types import Answer, Example, Message, Utterance
from elocute.errors import InputError
from elocute.evaluation.combinations import combinations, in_every_combination
from elocute.evaluation.reading import listen, numbers, paired, summarise, why_unjudged
from elocute.evaluation.statistics import mcnemar_exact, paired_permutation, wilson
from elocute.prosody.schema import load_schema
from elocute.recipe.ears import PocketSphinxSpec
from elocute.recipe.rewards import ProsodySpec
from elocute.rewards.build import build_ear, build_reward
from elocute.rewards.outcome import Scored, Unavailable

ANSWER = Path("starter/audio/heldout-sum-0000.answer.wav")  # "fifty-two"


class Names:
    """Hears the same emotion everywhere; None: cannot be reached."""

    name, low, high, dimensions = "names", 0.0, 1.0, ("emotion",)

    def __init__(self, heard: str | None):
        self.heard = heard

    def check(self, examples):
        if any("emotion" not in example.columns["labels"] for example in examples):
            raise InputError("no emotion")

    def __call__(self, answers: list[Answer]):
        found = Unavailable("no reply") if self.heard is None else Scored(1.0, {"heard": {"emotion": self.heard}})
        return [found] * len(answers)


def row(id: str, text: str, **labels: str) -> Example:
    return Example(id, (Message("user", text),), columns={"labels": labels})


@pytest.fixture(scope="module")
def heard():
    """Four answers, heard by the real recogniser and measured: said, half of it asked for, silent, cut off."""
    waveform, rate = load_audio(ANSWER)
    silent = np.zeros(rate, np.float32)
    examples = [
        row("said", "Fifty-two!", emotion="Happy", speed="Medium"),
        row("more", "fifty two and two", emotion="Sad"),
        row("silent", "fifty two", emotion="Happy", speed="Slow"),
        row("cut", "52", speed="Fast"),
    ]
    said = [Utterance("", sound, rate) for sound in (waveform, waveform, silent)]
    ear = build_ear(PocketSphinxSpec(kind="pocketsphinx", vocabulary=Path("starter/answers.txt")))
    speed = build_reward(ProsodySpec(kind="prosody"))
    found = listen(examples, [*said, Utterance("", waveform, rate, "no end")], ear, [Names("Happy"), speed])
    ear.close()
    return [reading.to_json(None) for reading in found]


def test_words_labels_and_voice_are_heard(heard):
    said, more, silent, cut = heard
    assert (said["heard"], said["errors"], said["words"]) == ("fifty two", 0, 2)
    assert (more["errors"], more["words"]) == (2, 4)
    assert (silent["errors"], silent["words"]) == (2, 2)
    assert (cut["heard"], cut["errors"], cut["words"]) == ("", 2, 2)  # 52 is two words, and all are missed
    assert said["labels_heard"] == {"emotion": "Happy", "speed": "Medium"}
    assert more["labels_heard"] == {"emotion": "Happy"}
    assert silent["labels_heard"] == {"emotion": "Happy", "speed": None}  # there is nothing to measure
    assert said["broken"] is None and said["measured"]["pitch_range"] > 1
    assert silent["broken"].startswith("outside its limits: phones_per_second, pitch_range, silence_share")
    assert cut["broken"] == "no end" and cut["measured"] is None and cut["labels_heard"] == {"speed": None}
    assert json.loads(json.dumps(heard)) == heard


def test_the_metrics_of_these_four(heard):
    found = summarise(heard)
    assert found["wer"].value == 6 / 10 and found["wer"].n == 4
    assert found["label_alignment"].value == 3 / 6 and found["label_alignment"].n == 4
    assert found["label_alignment/emotion"].value == 2 / 3 and found["label_alignment/speed"].value == 1 / 3
    assert found["broken_audio"].value == 1 / 2 and found["broken_audio"].ci95 == wilson(2, 4)
    assert found["f0_range"].n == 2 and found["seconds"].n == 3
    assert found["f0_range"].value == pytest.approx(heard[0]["measured"]["pitch_range"])


def test_what_a_listener_cannot_judge_is_counted_and_no_number():
    waveform, rate = load_audio(ANSWER)
    ear = build_ear(PocketSphinxSpec(kind="pocketsphinx", vocabulary=Path("starter/answers.txt")))
    [reading] = listen([row("a", "fifty two", emotion="Sad")], [Utterance("", waveform, rate)], ear, [Names(None)])
    ear.close()
    rows = [reading.to_json(None)]
    assert rows[0]["labels_heard"] == {} and why_unjudged(rows) == {"emotion": {"no reply": 1}}
    assert "label_alignment" not in summarise(rows) and "label_alignment/emotion" not in summarise(rows)


def test_nothing_proper_is_nothing_measured():
    found = summarise([made(0, 3, {"speed": False}, None, broken=True)])
    assert found["f0_range"].value is None and found["seconds"].n == 0
    assert found["broken_audio"].value == 1 and found["label_alignment"].value == 0
    assert found["label_alignment"].ci95 == wilson(0, 1)  # resampling one row would be sure


def made(number: int, words: int, hits: dict[str, bool], f0: float | None, *, errors=0, broken=False) -> dict:
    """A line as to_json makes it."""
    return {
        "id": str(number),
        "labels": dict.fromkeys(hits, "asked"),
        "labels_heard": {name: "asked" if hit else "other" for name, hit in hits.items()},
        "unjudged": {},
        "errors": words if broken else errors,
        "words": words,
        "broken": "no end" if broken else None,
        "measured": None if broken else {"pitch_range": f0, "seconds": 1.0, "syllables_per_second": None},
    }


rows_of = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.dictionaries(st.sampled_from(["emotion", "speed"]), st.booleans()),
        st.none() | st.floats(0, 24),
        st.integers(0, 9),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
).map(lambda rows: [made(i, w, h, f, errors=e, broken=b) for i, (w, h, f, e, b) in enumerate(rows)])


@settings(max_examples=25)
@given(rows_of)
def test_metrics_are_their_definitions_and_lie_in_their_intervals(rows):
    found = summarise(rows)
    assert found["wer"].value == pytest.approx(sum(r["errors"] for r in rows) / sum(r["words"] for r in rows))
    asked = [(r["labels"][name], heard) for r in rows for name, heard in r["labels_heard"].items()]
    assert ("label_alignment" in found) == bool(asked)
    if asked:
        assert found["label_alignment"].value == pytest.approx(sum(a == h for a, h in asked) / len(asked))
    ranges = [r["measured"]["pitch_range"] for r in rows if r["measured"] and r["measured"]["pitch_range"] is not None]
    assert found["f0_range"].n == len(ranges)
    if ranges:
        assert found["f0_range"].value == pytest.approx(math.fsum(ranges) / len(ranges))
    for name, estimate in found.items():
        estimate.to_json()
        if estimate.value is not None and name.startswith(("broken", "label_alignment/")):
            assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
    turned = summarise(rows[::-1])
    assert {name: e.value for name, e in turned.items()} == pytest.approx({name: e.value for name, e in found.items()})


def test_two_moments_are_compared_row_by_row():
    before = [made(i, 4, {"emotion": False, "speed": i % 2 == 0}, 3.0, errors=2) for i in range(8)]
    after = [made(i, 4, {"emotion": True, "speed": i % 2 == 1}, 3.0 + i, errors=i % 3) for i in range(8)]
    found = paired(before, after[::-1])
    assert found["label_alignment/emotion"] == {"p": mcnemar_exact([0] * 8, [1] * 8), "n": 8}
    assert found["label_alignment/speed"]["p"] == 1 == found["broken_audio"]["p"]
    assert found["wer"]["p"] == paired_permutation([2] * 8, [i % 3 for i in range(8)], 0)
    hits = [int(i % 2 == 0) for i in range(8)], [1 + i % 2 for i in range(8)]
    assert found["label_alignment"]["p"] == paired_permutation(*hits, 0) and found["f0_range"]["p"] < 0.05
    assert paired(before, before) == {name: {"p": 1.0, "n": 8} for name in found}


def test_only_what_both_moments_have_is_compared():
    before = [made(0, 3, {"emotion": True, "speed": True}, 3.0), made(1, 3, {"speed": True}, 2.0)]
    after = [made(0, 3, {"speed": True}, None), made(1, 3, {"speed": False}, 2.0), made(2, 3, {}, 1.0)]
    found = {name: test["n"] for name, test in paired(before, after).items()}
    assert found == {
        "wer": 2, "broken_audio": 2, "label_alignment": 1, "label_alignment/speed": 2, "f0_range": 1, "seconds": 2,
    }  # fmt: skip
    assert numbers(after[2]).keys() == {"wer", "broken_audio", "f0_range", "seconds"}


def test_combinations_are_all_or_one_label_at_a_time(tmp_path):
    dimensions = {"emotion": ["A", "B", "C", "D"], "speed": ["X", "Y", "Z"]}

    def schema(**more):
        text = 'prompt: "{labels}{text}"\ndimensions:\n'
        for name, labels in (dimensions | more).items():
            text += f"  {name}: {{description: d, labels: {{{', '.join(f'{one}: d' for one in labels)}}}}}\n"
        (tmp_path / "schema.yaml").write_text(text)
        return load_schema(tmp_path / "schema.yaml")

    found = combinations(schema())
    assert len(found) == 12 and found[1] == {"emotion": "A", "speed": "Y"}
    assert found[-1] == {"emotion": "D", "speed": "Z"}
    assert len(combinations(schema(tone=["P", "Q", "R", "S"]))) == 48
    found = combinations(schema(tone=["P", "Q", "R", "S", "T"]))
    assert len(found) == 12 and {len(labels) for labels in found} == {1} and found[4] == {"speed": "X"}
    made = list(in_every_combination(row("r", "say it", emotion="A"), schema()))
    assert made[1].columns["labels"] == {"emotion": "A", "speed": "Y"} and made[1].messages[0].content == "say it"
    assert len({example.id for example in made}) == 12
