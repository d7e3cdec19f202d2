import json

import numpy as np
import pytest
from answers import answer
from voices import RATE, voice

from elocute.data.audio import save_wav
from elocute.errors import InputError
from elocute.prosody.schema import load_schema
from elocute.recipe.rewards import ProsodySpec
from elocute.rewards.build import build_reward
from elocute.rewards.outcome import Invalid, Scored
from elocute.rewards.prosody import ProsodyReward, find_targets

TEXT = "the cat is on the mat"  # six syllables


def spoken(seconds: float, text=TEXT, **labels):
    return answer("", waveform=voice(seconds=seconds), rate=RATE, question=text, labels=labels)


def reward(credit="closeness"):
    return build_reward(ProsodySpec(kind="prosody", credit=credit))


@pytest.mark.parametrize("credit", ["closeness", "match", "ordinal", "probability"])
def test_speed_is_measured_against_the_label(credit):
    outcomes = {
        wanted: [o.value for o in reward(credit)([spoken(6 / rate, speed=wanted) for rate in (2.5, 4.4, 8)])]
        for wanted in ("Slow", "Medium", "Fast")
    }
    assert int(np.argmax(outcomes["Slow"])) == 0
    assert int(np.argmax(outcomes["Medium"])) == 1
    assert int(np.argmax(outcomes["Fast"])) == 2


def test_defect_rlaif_5_a_near_speed_is_worth_something():
    slow = [spoken(6 / rate, speed="Slow") for rate in (2.5, 4.4, 8)]
    assert [o.value for o in reward("match")(slow)] == [1, 0, 0]
    assert [o.value for o in reward("ordinal")(slow)] == [1, 0.5, 0]
    smooth = [o.value for o in reward("closeness")(slow)]
    assert smooth[0] > smooth[1] > smooth[2] > 0
    assert reward()(slow)[1].detail["heard"] == {"speed": "Medium"}


def test_within_one_label_a_better_speed_is_still_better():
    """Where exact match gives a whole group the same, closeness leads on."""
    group = [spoken(6 / rate, speed="Medium") for rate in (4.4, 5.0, 5.6)]
    assert {o.value for o in reward("match")(group)} == {1.0}
    values = [o.value for o in reward("closeness")(group)]
    assert values == sorted(values, reverse=True) and values[0] - values[-1] > 0.2


def test_defect_rlaif_6_words_that_name_the_label_earn_nothing():
    """The same sound is worth the same whatever the words say, as long as they are as long."""
    neutral, telling = "the cat is on the mat", "we must run so fast now"
    a, b = (reward()([spoken(1.0, text, speed="Fast")])[0].value for text in (neutral, telling))
    assert a == pytest.approx(b, abs=1e-12)


def test_silence_is_the_answers_fault():
    quiet = answer("", waveform=np.zeros(RATE, np.float32), rate=RATE, question=TEXT, labels={"speed": "Slow"})
    mute = answer("", waveform=np.zeros(0, np.float32), rate=RATE, question=TEXT, labels={"speed": "Slow"})
    assert reward()([quiet, mute]) == [Invalid("nothing to measure syllables_per_second on"), Invalid("empty audio")]


def test_rows_without_a_measurable_label_are_named():
    with pytest.raises(InputError, match="rows.jsonl:7: labels: expected one for speed"):
        reward().check([spoken(1, emotion="Sad").example])


MOODS = """
prompt: "({labels}) {text}"
dimensions:
  mood: {description: How it sounds., labels: {calm: low, glad: high}}
"""


@pytest.fixture
def recordings(tmp_path):
    """Three of each: calm is low and flat, glad is high and wide."""
    (tmp_path / "moods.yaml").write_text(MOODS)
    rows = []
    for mood, f0, octaves in (("calm", 100, 0.2), ("glad", 250, 0.8)):
        for i in range(3):
            save_wav(tmp_path / f"{mood}{i}.wav", voice(f0 * (1 + 0.05 * i), 0.6, octaves=octaves), RATE)
            messages = [{"role": "user", "content": TEXT}]
            rows.append({"messages": messages, "labels": {"mood": mood}, "sft_target_audio": f"{mood}{i}.wav"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_targets_come_from_recordings(recordings):
    spec = ProsodySpec(
        kind="prosody", labels=str(recordings.with_name("moods.yaml")), recordings=recordings,
        measures={"mood": ["pitch_median", "pitch_range"]},
    )  # fmt: skip
    low, high = voice(104, 0.6, octaves=0.2), voice(260, 0.6, octaves=0.8)
    answers = [
        answer("", waveform=sound, rate=RATE, question=TEXT, labels={"mood": mood})
        for mood in ("calm", "glad") for sound in (low, high)
    ]  # fmt: skip
    values = [o.value for o in build_reward(spec)(answers)]
    assert values[0] > 0.5 > 0.1 > values[1] and values[3] > 0.5 > 0.1 > values[2]


def test_measures_that_cannot_be_are_refused(recordings):
    schema = load_schema(recordings.with_name("moods.yaml"))
    with pytest.raises(InputError, match="mood: expected a dimension of the schema .* found loudness"):
        find_targets(schema, {"mood": ["loudness"]}, recordings)
    with pytest.raises(InputError, match="none with a `measure`"):
        find_targets(schema, {}, recordings)
    with pytest.raises(InputError, match="recordings: expected with measures"):
        find_targets(schema, {"mood": ["energy"]}, None)


def test_dimensions_choose_among_those_that_can_be_measured(tmp_path):
    measured = "description: x, labels: {low: l, mid: m, high: h}"
    text = f"prompt: '({{labels}}) {{text}}'\ndimensions:\n  mood: {{{measured}}}\n"
    for name, measure in (("pace", "syllables_per_second"), ("pitch", "pitch_median")):
        text += f"  {name}: {{{measured}, ordered: true, measure: {measure}, bounds: [3, 6]}}\n"
    (tmp_path / "schema.yaml").write_text(text)

    def of(**more):
        return build_reward(ProsodySpec(kind="prosody", labels=str(tmp_path / "schema.yaml"), **more))

    assert of().dimensions == ("pace", "pitch") and of(dimensions=["pitch"]).dimensions == ("pitch",)
    with pytest.raises(InputError, match="dimensions: 'tempo' is not one of the schema's: mood, pace, pitch"):
        of(dimensions=["tempo"])
    with pytest.raises(InputError, match="measures: mood: expected, for the schema has no `measure` for it"):
        of(dimensions=["mood"])


def test_the_mean_is_over_the_rows_own_labels():
    schema = load_schema()
    targets = find_targets(schema, {}, None)
    assert list(targets) == ["speed"]
    (outcome,) = ProsodyReward("prosody", schema, targets)([spoken(1.0, speed="Fast", tone="Command")])
    assert isinstance(outcome, Scored) and outcome.value == outcome.detail["credit_speed"]
