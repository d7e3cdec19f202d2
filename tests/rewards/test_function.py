import math
import sys

import pytest
from answers import answer, tone

from elocute.errors import InputError, RunError
from elocute.rewards.function import FunctionReward
from elocute.rewards.outcome import Invalid, Scored, Unavailable

SOURCE = """
import math
def length(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]
def asked(prompts, completions, answer):
    assert prompts[0] == [{"role": "user", "content": "what is it?"}]
    return [1.0 if c[0]["content"] == a else None for c, a in zip(completions, answer)]
def plain(prompts, completions, **kwargs):
    assert prompts[0] == "what is it?"
    return [float(c == "yes") for c in completions]
def seconds(waveforms, sample_rates):
    return [len(w) / r for w, r in zip(waveforms, sample_rates)]
async def slowly(completions, **kwargs):
    return [1.0] * len(completions)
def bad(completions, **kwargs):
    return [math.nan, 7.0, "x", True]
def short(completions, **kwargs):
    return [1.0]
def raises(completions, **kwargs):
    raise KeyError("oh")
NUMBER = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def reward(file, name, **options):
    return FunctionReward("f", f"{file}:{name}", 0, 5, **options)


def test_trl_functions_work_unchanged(file):
    answers = [answer("yes", answer="yes"), answer("no", answer="yes")]
    assert reward(file, "length")(answers) == [Scored(3), Scored(2)]
    assert reward(file, "asked")(answers) == [Scored(1), Unavailable("the function gave no score")]
    assert reward(file, "plain", conversational=False)(answers) == [Scored(1), Scored(0)]
    assert reward(file, "slowly")(answers) == [Scored(1), Scored(1)]


def test_a_function_may_listen(file):
    assert reward(file, "seconds")([answer("a", waveform=tone(0.5, 8000), rate=8000)]) == [Scored(0.5)]


def test_by_module_name(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert FunctionReward("f", "mine:length", 0, 5)([answer("yes")]) == [Scored(3)]
    sys.modules.pop("mine")


def test_only_proper_answers_are_shown(file):
    assert reward(file, "length")([answer("abc", broken="no end"), answer("ab")]) == [Invalid("no end"), Scored(2)]


def test_what_is_no_score_is_unavailable(file):
    nan, high, text, true = reward(file, "bad")([answer("a")] * 4)
    assert all(isinstance(o, Unavailable) for o in (nan, high, text))
    assert "outside its range [0, 5]" in nan.reason and "7" in high.reason and "'x'" in text.reason
    assert true == Scored(1.0) and not math.isnan(true.value)
    assert reward(file, "raises")([answer("a")]) == [Unavailable("the function raised KeyError: 'oh'")]


def test_a_list_of_another_length_stops_the_run(file):
    with pytest.raises(RunError, match="gave 1 scores for 2 answers"):
        reward(file, "short")([answer("a")] * 2)


@pytest.mark.parametrize("address", ["length", "no.such:length", "{file}:nothing", "{file}:NUMBER", "gone.py:length"])
def test_a_wrong_address_is_named(file, address):
    with pytest.raises(InputError, match="^function: "):
        FunctionReward("f", address.format(file=file), 0, 1)
