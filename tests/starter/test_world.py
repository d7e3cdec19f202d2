"""The starter world against a second reading of its questions: answers, facts and words worked out from the text."""

from random import Random

import pytest

from starter.world import SPLITS, build_items, noisy_answer, split_facts, vocabulary

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()  # fmt: skip
TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
KIND = {
    **dict.fromkeys("dog horse tiger zebra rabbit monkey chicken".split(), "animals"),
    **dict.fromkeys("red green white brown yellow purple".split(), "colors"),
    **dict.fromkeys("rice apple pizza sugar banana potato cheese".split(), "foods"),
    **dict.fromkeys(DAYS, "days"),
}
PAIRS = ("summer/winter morning/evening always/never open/closed inside/outside old/young early/late winner/loser "
         "brother/sister fast/slow").split()  # fmt: skip
OPPOSITE = dict(pair.split("/") for pair in PAIRS)
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}
QUESTION_WORDS = set("plus add and minus take from larger smaller or middle then next after before what comes the "
                     "opposite of odd count how many more letters longer word".split())  # fmt: skip


def numbers_in(words: list[str]) -> list[int]:
    """ "thirty seven or two" → [37, 2]. "twenty two" is 22: no question means twenty, then two."""
    found, tens = [], None
    for word in words:
        if word in ONES and tens is not None and 0 < ONES.index(word) < 10:
            found[-1] += ONES.index(word)
            tens = None
        elif word in ONES:
            found.append(ONES.index(word))
            tens = None
        elif word in TENS:
            found.append(TENS[word])
            tens = word
        else:
            tens = None
    return found


def work_out(question: str) -> tuple[str | int, tuple]:
    """The answer (a word or a number) and what it rests on."""
    words = question.split()
    first, rest = words[0], words[1:]
    if first == "odd":
        three = rest[1:] if rest[0] == "one" else rest
        (odd,) = [word for word in three if [KIND[other] for other in three].count(KIND[word]) == 1]
        return odd, ("odd", *sorted(three))
    if first == "count" or words[:2] == ["how", "many"]:
        group, *three = rest if first == "count" else rest[1:]
        return sum(KIND[word] == group for word in three), ("count", group, *sorted(three))
    if words[:2] in (["more", "letters"], ["longer", "word"]):
        pair = [words[2], words[4]]
        return max(pair, key=len), ("letters", *sorted(pair))
    if "opposite" in words:
        return OPPOSITE[words[-1]], ("opposite", words[-1])
    if "after" in words or "before" in words:
        return beside([word for word in words if word not in ("what", "comes")])
    return reckon(words, numbers_in(words))


def beside(words: list[str]) -> tuple[str | int, tuple]:
    at = next(index for index, word in enumerate(words) if word in ("after", "before"))
    steps = (ONES.index(words[0]) if at else 1) * (1 if words[at] == "after" else -1)
    for names in (DAYS, MONTHS):
        if words[-1] in names:
            here = names.index(words[-1])
            there = (here + steps) % len(names)
            return names[there], ("calendar", names[here if steps > 0 else there], abs(steps))
    (number,) = numbers_in(words[at + 1 :])
    return number + steps, added(min(number, number + steps), 1)


def reckon(words: list[str], numbers: list[int]) -> tuple[int, tuple]:
    if "plus" in words or "add" in words:
        a, b = numbers
        return a + b, added(a, b)
    if "minus" in words or "take" in words:
        a, b = numbers if "minus" in words else numbers[::-1]
        return a - b, added(a - b, b)
    if "larger" in words or "smaller" in words:
        return (max if "larger" in words else min)(numbers), ("compare", *sorted(numbers))
    if "middle" in words:
        return sorted(numbers)[1], ("middle", *sorted(numbers))
    assert ("then" in words or "next" in words) and len(numbers) == 2, words
    return 2 * numbers[1] - numbers[0], ("sequence", *numbers)


def added(a: int, b: int) -> tuple:
    return ("add", *sorted((a, b)))


def as_number(answer: str) -> str | int:
    return numbers_in(answer.split())[0] if numbers_in(answer.split()) else answer


@pytest.fixture(scope="module")
def items():
    return build_items()


def test_answers_are_right_by_a_second_reading(items):
    wrong = [item for item in items if as_number(item.answer) != work_out(item.question)[0]]
    assert wrong == []


def test_no_question_means_two_things(items):
    assert len({item.question for item in items}) == len(items)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_an_answer_rests_on_is_in_one_split_only(items, seed):
    splits = split_facts(items, seed)
    where: dict[tuple, set[str]] = {}
    for item in items:
        where.setdefault(work_out(item.question)[1], set()).add(splits[item.fact])
    assert {basis: found for basis, found in where.items() if len(found) > 1} == {}
    assert set(splits.values()) == set(SPLITS)


def test_splits_depend_on_the_seed_alone(items):
    assert split_facts(items, 5) == split_facts(build_items(), 5)
    assert split_facts(items, 5) != split_facts(items, 6)


def test_single_calendar_steps_and_one_direction_of_each_opposite_are_in_base(items):
    splits = split_facts(items, 0)
    assert all(split == "base" for fact, split in splits.items() if fact.startswith("calendar") and fact[-2:] == "+1")
    known = {frozenset(fact.partition(":")[2].split(">")) for fact, split in splits.items()
             if fact.startswith("opposite") and split == "base"}  # fmt: skip
    assert len(known) == 10


def test_mistakes_are_never_right(items):
    for item in items:
        assert item.mistakes and len(set(item.mistakes)) == len(item.mistakes)
        right, _ = work_out(item.question)
        assert right not in [as_number(mistake) for mistake in item.mistakes]


def test_teacher_errs_as_often_as_told(items):
    rng = Random(0)
    asked = rng.sample(items, 4000)
    assert all(noisy_answer(item, 0.0, rng) == item.answer for item in asked)
    assert all(noisy_answer(item, 1.0, rng) in item.mistakes for item in asked)
    right = sum(noisy_answer(item, 0.4, rng) == item.answer for item in asked) / len(asked)
    assert abs(right - 0.6) < 0.03


def test_vocabulary_is_small_and_the_bundled_recogniser_knows_it(items):
    import pocketsphinx

    words = vocabulary(items)
    known = {*QUESTION_WORDS, *ONES, *TENS, *KIND, *MONTHS, *OPPOSITE, *KIND.values()} - {"days"}
    assert set(words) == known and len(words) <= 120
    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as dictionary:
        spoken = {line.split(maxsplit=1)[0] for line in dictionary if line.strip()}
    assert set(words) <= spoken


def test_questions_and_answers_are_short(items):
    assert max(len(item.question.split()) for item in items) <= 7
    assert max(len(answer.split()) for item in items for answer in (item.answer, *item.mistakes)) <= 2
