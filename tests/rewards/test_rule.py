import pytest
from answers import answer

from elocute.errors import InputError
from elocute.rewards.outcome import Invalid, Scored
from elocute.rewards.rule import RuleReward


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
        ("regex", {"answer": "("}, r"rows.jsonl:7: answer: not a regular expression"),
        ("number", {"answer": "cold"}, r"rows.jsonl:7: answer: expected one number, found 'cold'"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(match, columns, message):
    with pytest.raises(InputError, match=message):
        RuleReward("rule", "answer", match)([answer("4", **columns)])
