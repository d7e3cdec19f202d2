"""The starter world: short spoken questions whose answers need some thought, with a teacher that errs on purpose.

    items = build_items()                    # every question of the world with its answer and its plausible mistakes
    splits = split_facts(items, seed=0)      # fact → "base" | "train" | "heldout"

What is held out is a *fact*, not a phrasing. A fact is what must be known or worked out to answer:

- sums, differences, neighbours: the triple a + b = c, however it is asked. "thirty seven plus eight", "add eight and
  thirty seven" and "forty five minus eight" all rest on the fact `add:8,37`; "after sixty" rests on `add:1,60`. Sums of
  two digits are the table from which the others are worked out: always in base training;
- comparisons, sequences: the numbers, whichever is asked for and, in comparisons, in whichever order;
- calendar: (day or month, steps), both ways: "two after monday" and "two before wednesday" are one fact. Single steps
  are the calendar itself: always in base training;
- odd one out, counting, spelling: the set of words (and the group asked for);
- opposites: pair and direction. They can only be memorised, so base training holds at least one direction of each pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from random import Random

from starter.words import (
    COUNTED_GROUPS,
    DAYS,
    GROUPS,
    LARGEST_NUMBER,
    MONTHS,
    NOUNS,
    OPPOSITES,
    SPELLED,
    number_words,
)

SPLITS = ("base", "train", "heldout")
SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class Item:
    """One question. `mistakes` are plausible wrong answers, likeliest first; the answer is never among them."""

    category: str
    difficulty: str
    fact: str
    question: str
    answer: str
    mistakes: tuple[str, ...]


def build_items() -> list[Item]:
    """Every question of the world, in a fixed order."""
    categories = (sums, differences, comparisons, middles, sequences, neighbours, calendar, opposites, odd_ones, counts,
                  spellings)  # fmt: skip
    return [item for category in categories for item in category()]


def vocabulary(items: list[Item]) -> list[str]:
    """Every word that is asked, answered or mistaken, sorted."""
    texts = {text for item in items for text in (item.question, item.answer, *item.mistakes)}
    return sorted({word for text in texts for word in text.split()})


# ---- numbers ---------------------------------------------------------------------------------------------------------


def sums() -> Iterator[Item]:
    """A number and a digit. Mistakes: the carry forgotten, off by one, the larger term echoed."""
    for a in range(1, 91):
        for b in range(1, 10):
            total, carries = a + b, a % 10 + b >= 10
            mistakes = numbers_but(total, total - 10 if carries else total, total - 1, total + 1, max(a, b))
            # The other order of two digits has its own turn of the loops.
            for terms in ((a, b),) if a < 10 else ((a, b), (b, a)):
                for question in phrased(("{} plus {}", "add {} and {}"), *terms):
                    yield Item("sum", hard_if(carries), adding(a, b), question, number_words(total), mistakes)


def differences() -> Iterator[Item]:
    """A digit taken from a number. Mistakes: the borrowed ten forgotten, off by one, the digit echoed."""
    for a in range(2, LARGEST_NUMBER + 1):
        for b in range(1, min(a, 10)):
            rest, borrows = a - b, a % 10 < b
            mistakes = numbers_but(rest, rest + 10 if borrows else rest, rest + 1, rest - 1, b)
            for question in (*phrased(("{} minus {}",), a, b), *phrased(("take {} from {}",), b, a)):
                yield Item("difference", hard_if(borrows), adding(rest, b), question, number_words(rest), mistakes)


def comparisons() -> Iterator[Item]:
    """Mistake: the other number."""
    for a, b in permutations(range(LARGEST_NUMBER + 1), 2):
        fact, difficulty = f"compare:{min(a, b)},{max(a, b)}", hard_if(abs(a - b) < 10)
        for word, right, wrong in (("larger", max(a, b), min(a, b)), ("smaller", min(a, b), max(a, b))):
            question = f"{word} {number_words(a)} or {number_words(b)}"
            yield Item("comparison", difficulty, fact, question, number_words(right), numbers_but(right, wrong))


def middles() -> Iterator[Item]:
    """Which of three numbers is neither the largest nor the smallest. Mistakes: the largest, the smallest."""
    for terms in permutations(range(20), 3):  # below twenty: "twenty two five" could be heard as two numbers
        low, middle, high = sorted(terms)
        question = "middle " + " ".join(map(number_words, terms))
        mistakes = numbers_but(middle, high, low)
        yield Item("comparison", "hard", f"middle:{low},{middle},{high}", question, number_words(middle), mistakes)


def sequences() -> Iterator[Item]:
    """Two terms, up or down; what follows at the same distance. Mistakes: off by one, the last term, a step too far."""
    for step in (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10):
        for start in range(LARGEST_NUMBER + 1):
            term, following = start + step, start + 2 * step
            if not 0 <= following <= LARGEST_NUMBER:
                continue
            mistakes = numbers_but(following, following + 1, term, following + step, following - 1)
            for question in phrased(("{} {} then", "next {} {}"), start, term):
                fact = f"sequence:{start},{term}"
                yield Item("sequence", hard_if(abs(step) > 2), fact, question, number_words(following), mistakes)


def neighbours() -> Iterator[Item]:
    """The number after or before. Mistakes: the wrong side, the number itself."""
    for number in range(1, LARGEST_NUMBER):
        for word, step in (("after", 1), ("before", -1)):
            right = number + step
            mistakes = numbers_but(right, number - step, number)
            for question in phrased((f"{word} {{}}", f"what comes {word} {{}}"), number):
                fact = adding(min(number, right), 1)
                yield Item("neighbour", hard_if(number % 10 in (0, 9)), fact, question, number_words(right), mistakes)


# ---- words -----------------------------------------------------------------------------------------------------------


def calendar() -> Iterator[Item]:
    """The day or month some steps after or before. Mistakes: the wrong side, one step off, the day itself."""
    for names in (DAYS, MONTHS):
        for here, name in enumerate(names):
            for steps in (1, 2, 3):
                for word, sign in (("after", 1), ("before", -1)):
                    there = (here + sign * steps) % len(names)
                    earlier = here if sign > 0 else there
                    fact = f"calendar:{names[earlier]}+{steps}"
                    wrong = (here - sign * steps, there - sign, here, there + sign)
                    mistakes = all_but(names[there], *(names[place % len(names)] for place in wrong))
                    leads = (f"{word} ", f"what comes {word} ") if steps == 1 else (f"{number_words(steps)} {word} ",)
                    for lead in leads:
                        yield Item("calendar", hard_if(steps > 1), fact, lead + name, names[there], mistakes)


def opposites() -> Iterator[Item]:
    """Mistakes: the word itself, a word of the next pair."""
    for index, pair in enumerate(OPPOSITES):
        astray = OPPOSITES[(index + 1) % len(OPPOSITES)]
        for word, opposite, wrong in ((*pair, astray[0]), (*pair[::-1], astray[1])):
            for question in (f"opposite of {word}", f"the opposite of {word}"):
                yield Item("opposite", "easy", f"opposite:{word}>{opposite}", question, opposite, (word, wrong))


def odd_ones() -> Iterator[Item]:
    """Two words of one group and one of another; which does not belong. Mistakes: either of the two."""
    for group, words in GROUPS.items():
        for other, others in GROUPS.items():
            # Days and colors stand out; an animal among foods, or a food among animals, does not.
            difficulty = hard_if({group, other} == {"animals", "foods"})
            for first, second in combinations(words, 2) if group != other else ():
                for odd in others:
                    fact = "odd:" + ",".join(sorted((first, second, odd)))
                    for order in permutations((first, second, odd)):
                        mistakes = tuple(word for word in order if word != odd)
                        for question in phrased_words(("odd one {}", "odd {}"), order):
                            yield Item("odd", difficulty, fact, question, odd, mistakes)


def counts() -> Iterator[Item]:
    """How many of three words belong to a group. Mistakes: one too many, one too few."""
    for words in combinations(NOUNS, 3):
        for group in COUNTED_GROUPS:
            number = sum(word in GROUPS[group] for word in words)
            mistakes = tuple(number_words(n) for n in (number + 1, number - 1) if 0 <= n <= 3)
            fact, difficulty = f"count:{group}:{','.join(sorted(words))}", hard_if(number in (1, 2))
            for order in permutations(words):
                for question in phrased_words((f"count {group} {{}}", f"how many {group} {{}}"), order):
                    yield Item("count", difficulty, fact, question, number_words(number), mistakes)


def spellings() -> Iterator[Item]:
    """Which of two words has more letters. Mistake: the other word."""
    for first, second in permutations(SPELLED, 2):
        if len(first) == len(second):
            continue
        longer, shorter = (first, second) if len(first) > len(second) else (second, first)
        fact, difficulty = f"letters:{','.join(sorted((first, second)))}", hard_if(len(longer) - len(shorter) == 1)
        for question in phrased_words(("more letters {}", "longer word {}"), (f"{first} or {second}",)):
            yield Item("spelling", difficulty, fact, question, longer, (shorter,))


# ---- small helpers ---------------------------------------------------------------------------------------------------


def hard_if(hard: bool) -> str:
    return "hard" if hard else "easy"


def adding(a: int, b: int) -> str:
    return f"add:{min(a, b)},{max(a, b)}"


def phrased(phrasings: tuple[str, ...], *numbers: int) -> list[str]:
    return [phrasing.format(*map(number_words, numbers)) for phrasing in phrasings]


def phrased_words(phrasings: tuple[str, ...], words: tuple[str, ...]) -> list[str]:
    return [phrasing.format(" ".join(words)) for phrasing in phrasings]


def all_but(answer: str, *candidates: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(candidate for candidate in candidates if candidate != answer))


def numbers_but(answer: int, *candidates: int) -> tuple[str, ...]:
    inside = (number for number in candidates if 0 <= number <= LARGEST_NUMBER)
    return all_but(number_words(answer), *map(number_words, inside))


# ---- splits and the teacher ------------------------------------------------------------------------------------------


def split_facts(items: list[Item], seed: int) -> dict[str, str]:
    """Give each fact to one split: SHARES of each kind and difficulty, drawn by `seed`; see the module's docstring."""
    rng, splits = Random(seed), {}
    for (kind, _), facts in _facts_by_kind(items).items():
        if kind == "opposite":
            splits |= _split_opposites(facts, rng)
        else:
            splits |= {fact: "base" for fact in facts if is_groundwork(fact)}
            facts = [fact for fact in facts if fact not in splits]
            rng.shuffle(facts)
            first, second = round(SHARES[0] * len(facts)), round((SHARES[0] + SHARES[1]) * len(facts))
            for split, part in zip(SPLITS, (facts[:first], facts[first:second], facts[second:]), strict=True):
                splits |= dict.fromkeys(part, split)
    return splits


def is_groundwork(fact: str) -> bool:
    """Sums of two digits and single steps in the calendar: what the other facts are worked out from."""
    kind, _, rest = fact.partition(":")
    return kind == "add" and max(map(int, rest.split(","))) < 10 or kind == "calendar" and rest.endswith("+1")


def _facts_by_kind(items: list[Item]) -> dict[tuple[str, str], list[str]]:
    """Facts by kind and by the difficulty with which they first turn up, so that small sums reach every split."""
    kinds: dict[tuple[str, str], list[str]] = {}
    first_difficulty: dict[str, str] = {}
    for item in items:
        first_difficulty.setdefault(item.fact, item.difficulty)
    for fact, difficulty in first_difficulty.items():
        kinds.setdefault((fact.partition(":")[0], difficulty), []).append(fact)
    return kinds


def _split_opposites(facts: list[str], rng: Random) -> dict[str, str]:
    """Base training gets one direction of each pair and both of some; the others go round the splits."""
    pairs = [(facts[i], facts[i + 1]) for i in range(0, len(facts), 2)]
    rng.shuffle(pairs)
    splits = {}
    for index, pair in enumerate(pairs):
        known, asked = rng.sample(pair, 2)
        splits |= {known: "base", asked: SPLITS[index % len(SPLITS)]}
    return splits


def noisy_answer(item: Item, p_wrong: float, rng: Random) -> str:
    """Right with probability 1 − p_wrong, else one of the mistakes, each half as likely as the one before."""
    if rng.random() >= p_wrong:
        return item.answer
    weights = [0.5**rank for rank in range(len(item.mistakes))]
    return rng.choices(item.mistakes, weights)[0]
