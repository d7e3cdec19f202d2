"""Short stories of five sentences in simple words, whose ending follows from what came before.

    stories = draw_stories("train", 3000)      # the same for the same seed
    stories[0].sentences, stories[0].ending, stories[0].swapped, stories[0].hard

`plots.txt` holds the plots: rain leads to puddles, a lost key to an unlocked door. A story is a plot told of a hero and
a relative, in one of many wordings. What is held out is the *tale*: plot, hero and relative together are in one split
only, however they are worded; every plot is told in training, of others.

Both wrong endings are told of the story's own hero, so that a name alone decides nothing:

- swapped: the ending of another topic's plot (the topic tells it apart: tStoryCloze, arXiv 2305.13009);
- hard: the ending of another plot of the same topic, in the right ending's wording (only sense tells it apart).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from random import Random

SPLITS = ("train", "dev", "test")
SHARES = (0.8, 0.1, 0.1)
PLOTS = Path(__file__).with_name("plots.txt")

GIRLS = ("Anna", "Lucy", "Mary", "Emma", "Sarah", "Rose", "Julia", "Nina", "Kate", "Alice")
BOYS = ("Tom", "Ben", "Sam", "Jack", "Peter", "David", "Max", "Adam", "Henry", "Paul")
RELATIVES = {
    "mother": "her", "father": "him", "sister": "her", "brother": "him",
    "grandmother": "her", "grandfather": "him", "aunt": "her", "uncle": "him",
}  # fmt: skip
_COMMON = set(
    "a an the of in on at to into under up down over from with without it its she he her his they them their was were "
    "and again very all other two old new little big long off out back put is had not could first soon".split()
)


@dataclass(frozen=True)
class Plot:
    """One row of a topic: its sentences' wordings and what fills them. `row` counts within the topic."""

    topic: str
    row: int
    wordings: tuple[tuple[str, ...], ...]
    fill: tuple[tuple[str, str], ...]

    @cached_property
    def words(self) -> set[str]:
        """What is this plot's own: the content words of its row."""
        return _content(" ".join(text for _, text in self.fill))

    @cached_property
    def ending_words(self) -> set[str]:
        """Those of its row that the ending says."""
        said = set(re.findall(r"{(\w+)}", " ".join(self.wordings[-1])))
        return _content(" ".join(text for column, text in self.fill if column in said))


@dataclass(frozen=True)
class Tale:
    """What is held out: a plot, its hero and the relative."""

    plot: Plot
    hero: str
    relative: str


@dataclass(frozen=True)
class Story:
    """Four sentences and three endings; `ending` is the right one."""

    id: str
    topic: str
    row: int
    hero: str
    sentences: tuple[str, str, str, str]
    ending: str
    swapped: str
    hard: str

    @property
    def text(self) -> str:
        """The story as it should be told."""
        return " ".join((*self.sentences, self.ending))


def draw_stories(split: str, count: int, seed: int = 0) -> list[Story]:
    """`count` different stories of a split, each tale as often as any other (up to one).

    Raises ValueError when the split's tales have no more wordings.
    """
    told = tales(split, seed)
    stories: dict[str, Story] = {}
    turn = 0
    while len(stories) < count:
        before = len(stories)
        for tale in told:
            story = tell(tale, turn, seed)
            stories.setdefault(story.text, story)
            if len(stories) == count:
                return list(stories.values())
        turn += 1
        if len(stories) == before:
            raise ValueError(f"{split}: no more than {before} stories, {count} asked")
    return list(stories.values())


def sentences_of(stories: Iterable[Story], *, wrong_endings: bool = False) -> list[str]:
    """Every sentence of the stories once; their wrong endings too, if asked."""
    texts = [text for s in stories for text in (*s.sentences, s.ending, *((s.swapped, s.hard) * wrong_endings))]
    return list(dict.fromkeys(texts))


def tales(split: str, seed: int = 0) -> list[Tale]:
    """The tales of a split, shuffled; topics and plots are spread over all splits."""
    everything = [Tale(p, hero, relative) for p, hero, relative in product(plots(), GIRLS + BOYS, RELATIVES)]
    Random(f"tales {seed}").shuffle(everything)
    ends = [round(sum(SHARES[:i]) * len(everything)) for i in range(len(SHARES) + 1)]
    i = SPLITS.index(split)
    return everything[ends[i] : ends[i + 1]]


def tell(tale: Tale, turn: int, seed: int = 0) -> Story:
    """A tale in words; another turn chooses other words and other wrong endings."""
    plot = tale.plot
    name = f"{plot.topic}-{plot.row}-{tale.hero}-{tale.relative}-{turn}".lower()
    draw = Random(f"{seed} {name}")
    sentences = [_worded(draw.choice(w), tale, plot) for w in plot.wordings[:-1]]
    wording = draw.randrange(len(plot.wordings[-1]))
    hard, swapped = map(draw.choice, _wrong_plots(plot))
    return Story(
        name, plot.topic, plot.row, tale.hero, tuple(sentences),
        ending=_worded(plot.wordings[-1][wording], tale, plot),
        swapped=_worded(draw.choice(swapped.wordings[-1]), tale, swapped),
        hard=_worded(hard.wordings[-1][wording], tale, hard),
    )  # fmt: skip


def vocabulary() -> list[str]:
    """Every word that a story may say, in lower case, sorted."""
    said = {word.lower() for word in (*GIRLS, *BOYS, *RELATIVES, *"she he her his him".split())}
    for plot in plots():
        texts = [wording for wordings in plot.wordings for wording in wordings] + [text for _, text in plot.fill]
        said |= set(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", " ".join(texts)).lower()))
    return sorted(said)


@cache
def plots() -> tuple[Plot, ...]:
    """All plots, in the file's order."""
    return tuple(_read(PLOTS.read_text(encoding="utf-8")))


@cache
def _wrong_plots(plot: Plot) -> tuple[list[Plot], list[Plot]]:
    """Plots whose ending says nothing that is this plot's own: (of its topic, of other topics)."""
    others = [p for p in plots() if not p.ending_words & plot.words]
    return [p for p in others if p.topic == plot.topic], [p for p in others if p.topic != plot.topic]


def _read(text: str) -> Iterator[Plot]:
    for section in text.split("\n# ")[1:]:
        topic, *lines = section.strip().split("\n")
        header = next(i for i, line in enumerate(lines) if line.startswith("= "))
        wordings = tuple(tuple(line[2:].split(" / ")) for line in lines[:header])
        columns = lines[header][2:].split(" | ")
        for row, line in enumerate(lines[header + 1 :]):
            yield Plot(topic, row, wordings, tuple(zip(columns, line.split(" | "), strict=True)))


def _worded(wording: str, tale: Tale, plot: Plot) -> str:
    """The wording with its braces filled, the row's words first: they have braces of their own."""
    she, her, object_ = ("she", "her", "her") if tale.hero in GIRLS else ("he", "his", "him")
    people = {
        "n": tale.hero, "s": she, "S": she.capitalize(), "h": her, "H": her.capitalize(), "o": object_,
        "k": tale.relative, "o2": RELATIVES[tale.relative],
    }  # fmt: skip
    for words in (dict(plot.fill), people):
        wording = re.sub(r"{(\w+)}", lambda m, words=words: words.get(m[1], m[0]), wording)
    return wording


def _content(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text.lower()))) - _COMMON
