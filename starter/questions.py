"""Which questions each split asks, in which voice, and what the teacher answers: rows of the world, not yet spoken.

Base training also gets written questions, many more than these: they teach the facts. Most of them are spoken too, by
the quick voices: thinking about what was read does not by itself become thinking about what was heard.
"""

from collections import Counter
from dataclasses import dataclass, replace
from random import Random

from starter.words import NUMBERS
from starter.world import SPLITS, Item, build_items, noisy_answer, split_facts


@dataclass(frozen=True)
class Style:
    """A voice of starter/voices.py at a rate."""

    voice: str
    rate: float

    def __str__(self) -> str:
        return f"{self.voice}@{self.rate:g}"


QUESTION_STYLES = (
    Style("joe", 1.05), Style("joe", 1.2), Style("joe", 1.35),
    Style("us-man", 1.15), Style("us-man", 1.35), Style("us-woman", 1.25), Style("gb-man", 1.15),
)  # fmt: skip
ANSWER_VOICE = "joe"

# Rows a category and split; half of them easy where the split has that many easy questions.
ROWS = {
    "sum": (1500, 260, 200), "difference": (1100, 180, 140), "comparison": (2000, 320, 260),
    "sequence": (900, 150, 120), "neighbour": (600, 100, 80), "calendar": (500, 60, 50), "opposite": (160, 20, 20),
    "odd": (1200, 200, 160), "count": (1000, 170, 140), "spelling": (1000, 150, 120),
}  # fmt: skip
WRITTEN_ROWS = 40_000
VOICED_ROWS = 30_000  # so many of the written questions are also spoken, by
QUICK_STYLES = tuple(style for style in QUESTION_STYLES if style.voice != "joe")

# How often the teacher errs in base training, (easy, hard). Where only two answers make sense it must stay well below
# one half: at one half nothing could be learned.
WRONG = {
    "sum": (0.35, 0.55), "difference": (0.35, 0.55), "comparison": (0.3, 0.4), "sequence": (0.4, 0.55),
    "neighbour": (0.4, 0.5), "calendar": (0.4, 0.55), "opposite": (0.4, 0.4), "odd": (0.45, 0.5),
    "count": (0.4, 0.5), "spelling": (0.3, 0.4),
}  # fmt: skip
# The post-training teacher is a little better; the held-out rows carry the truth.
WRONG_FACTOR = {"base": 1.0, "train": 0.9, "heldout": 0.0}


@dataclass(frozen=True)
class Row:
    """One question in one voice, or written (no style), with what the teacher answered."""

    id: str
    item: Item
    style: Style | None
    target: str

    def as_json(self, questions: str, answers: str) -> dict:
        """The row in the toolkit's schema; `questions` and `answers` are the stores of encoded audio."""
        return {
            "id": self.id,
            "messages": [{"role": "user", "content": "<|audio|>" if self.style else self.item.question}],
            "audios": [f"{questions}#{self.id}"] if self.style else [],
            "sft_target_text": self.target,
            "sft_target_audio": f"{answers}#{answer_key(self.target)}",
            "question_text": self.item.question,
            "task_type": "s2s",
            "answer": accepted_forms(self.item.answer),
            "category": self.item.category,
            "difficulty": self.item.difficulty,
            "fact": self.item.fact,
            "teacher_right": self.target == self.item.answer,
            "voice": str(self.style) if self.style else None,
        }


def answer_key(text: str) -> str:
    return text.replace(" ", "_")


def accepted_forms(answer: str) -> list[str]:
    """What counts as this answer when written: the words, and digits for a number."""
    return [answer, str(NUMBERS[answer])] if answer in NUMBERS else [answer]


def draw_rows(seed: int, wrong_factor: dict[str, float] | None = None) -> dict[str, list[Row]]:
    """The rows of every split, shuffled; the same `seed` gives the same rows.

    `wrong_factor` multiplies the teacher's error rates, by split. No question is asked twice in the same voice.
    """
    factor = WRONG_FACTOR | (wrong_factor or {})
    items = build_items()
    splits = split_facts(items, seed)
    rows = {}
    for index, split in enumerate(SPLITS):
        asked = []
        for category, counts in ROWS.items():
            pool = [item for item in items if item.category == category and splits[item.fact] == split]
            asked += _ask_category(pool, counts[index], Random(f"{seed}/{split}/{category}"))
        rng = Random(f"{seed}/{split}")
        rng.shuffle(asked)
        rows[split] = _answer(split, asked, factor[split], rng)
    return rows


def draw_written(seed: int, count: int = WRITTEN_ROWS, wrong_factor: float = WRONG_FACTOR["base"]) -> list[Row]:
    """Written rows of base training: categories in proportion to ROWS, easy and hard alike."""
    items = build_items()
    splits = split_facts(items, seed)
    pools: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        if splits[item.fact] == "base":
            pools.setdefault((item.category, item.difficulty), []).append(item)
    rng = Random(f"{seed}/written")
    shares = [ROWS[category][0] for category, _ in pools]
    drawn = [rng.choice(pools[pool]) for pool in rng.choices(list(pools), shares, k=count)]
    return _answer("written", [(item, None) for item in drawn], wrong_factor, rng)


def draw_voiced(seed: int, written: list[Row]) -> list[Row]:
    """The first written rows, spoken; with the same answers."""
    rng = Random(f"{seed}/voiced")
    return [
        replace(row, id=row.id.replace("written", "voiced"), style=rng.choice(QUICK_STYLES))
        for row in written[:VOICED_ROWS]
    ]


def _answer(split: str, asked: list[tuple[Item, Style | None]], factor: float, rng: Random) -> list[Row]:
    numbers, rows = Counter(), []
    for item, style in asked:
        p_wrong = factor * WRONG[item.category][item.difficulty == "hard"]
        row_id = f"{split}-{item.category}-{numbers[item.category]:04d}"
        rows.append(Row(row_id, item, style, noisy_answer(item, p_wrong, rng)))
        numbers[item.category] += 1
    return rows


def _ask_category(pool: list[Item], count: int, rng: Random) -> list[tuple[Item, Style]]:
    easy = _ask([item for item in pool if item.difficulty == "easy"], count // 2, rng)
    hard = _ask([item for item in pool if item.difficulty == "hard"], count - len(easy), rng)
    if len(easy) + len(hard) < count:
        easy = _ask([item for item in pool if item.difficulty == "easy"], count - len(hard), rng)
    return easy + hard


def _ask(pool: list[Item], count: int, rng: Random) -> list[tuple[Item, Style]]:
    """At most `count` distinct (question, voice), going round the facts so that each is asked equally often."""
    by_fact: dict[str, list[Item]] = {}
    for item in pool:
        by_fact.setdefault(item.fact, []).append(item)
    facts, ways, asked = list(by_fact), {}, []
    rng.shuffle(facts)
    while facts and len(asked) < count:
        for fact in list(facts):
            if fact not in ways:
                ways[fact] = [(item, style) for item in by_fact[fact] for style in QUESTION_STYLES]
                rng.shuffle(ways[fact])
            asked.append(ways[fact].pop())
            if not ways[fact]:
                facts.remove(fact)
            if len(asked) == count:
                break
    return asked
