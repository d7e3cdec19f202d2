from dataclasses import replace

import pytest
from answers import answer

from elocute.errors import InputError
from elocute.rewards.outcome import Invalid, Scored
from elocute.rewards.rule import RuleReward, right_answers


def values(reward, answers):
    return [outcome.value for outcome in reward(answers)]


def test_exact_compares_spellings_and_lists():
    reward = RuleReward("rule", "answer")
    answers = [
        answer("21", answer="twenty one"),
        answer("Twenty-one.", answer=["no", "21"]),
        answer("Twenty-one.", answer=21),
        answer("It is twenty one", answer="21"),
        answer("", answer="21"),
    ]
    assert values(reward, answers) == [1, 1, 1, 0, 0]


def test_number_takes_the_last_number_said():
    reward = RuleReward("rule", "answer", "number")
    answers = [
        answer("seven plus four is eleven", answer="11"),
        answer("eleven is seven plus four", answer="11"),
        answer("I do not know", answer="11"),
        answer("minus 3", answer=-3),
    ]
    assert values(reward, answers) == [1, 0, 0, 1]


def test_regex_searches_the_normalised_text():
    reward = RuleReward("rule", "pattern", "regex")
    assert values(reward, [answer("It's 4!", pattern=r"\bfour$"), answer("14", pattern=r"\bfour$")]) == [1, 0]


def test_a_broken_answer_is_invalid_and_order_is_kept():
    outcomes = RuleReward("rule", "answer")([answer("1", answer="1"), answer("1", answer="1", broken="no end")] * 2)
    assert outcomes == [Scored(1.0), Invalid("no end")] * 2


@pytest.mark.parametrize(
    ("match", "columns", "message"),
    [
        ("exact", {}, r"rows.jsonl:7: answer: expected an accepted answer or a list of them, found None"),
        ("exact", {"answer": []}, r"rows.jsonl:7: answer: expected"),
        ("exact", {"answer": ""}, r"rows.jsonl:7: answer: expected an accepted answer or a list of them, found ''"),
        ("exact", {"answer": ["4", " "]}, r"rows.jsonl:7: answer: expected an accepted answer or a list"),
        ("exact", {"answer": ["4", "…"]}, r"rows.jsonl:7: answer: expected words, found '…'"),
        ("regex", {"answer": ""}, r"rows.jsonl:7: answer: expected an accepted answer"),
        ("regex", {"answer": "("}, r"rows.jsonl:7: answer: not a regular expression"),
        ("number", {"answer": "cold"}, r"rows.jsonl:7: answer: expected one number, found 'cold'"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(match, columns, message):
    reward = RuleReward("rule", "answer", match)
    with pytest.raises(InputError, match=message):
        reward([answer("4", **columns)])
    with pytest.raises(InputError, match=message):  # and so it is before anything is sampled
        reward.check([answer("", answer="4").example, answer("", **columns).example])


def test_a_check_names_every_row_that_cannot_be_judged():
    rows = [replace(answer("", answer=value).example, line=line) for line, value in enumerate(["4", None, 4, []], 1)]
    with pytest.raises(InputError) as caught:
        RuleReward("rule", "answer").check(rows)
    assert [line.split(": ")[0] for line in str(caught.value).split("\n")] == ["rows.jsonl:2", "rows.jsonl:4"]
    RuleReward("rule", "answer").check(rows[::2])


def test_silence_is_never_right():
    assert right_answers(answer("", answer=["Four!", 4, "21"]).example, "answer") == {"four", "twenty one"}
    assert values(RuleReward("rule", "answer"), [answer("", answer="4"), answer("?!", answer="4")]) == [0, 0]
