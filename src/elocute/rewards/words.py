"""Which words of a text were heard, and when: what a recogniser's words say about each word that was to be spoken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from elocute.data.normalise import normalise


@dataclass(frozen=True)
class Word:
    """A word as a recogniser heard it, from `start` to `end` in seconds."""

    text: str
    start: float
    end: float


def mark_words(written: str, heard: Sequence[Word], seconds: float) -> list[dict[str, Any]]:
    """A mark for each word written and for each word heard that was not, in order; both normalised.

    {"place", "expected", "heard", "start", "end"}: a word's place among those written, what was to be heard there, what
    was (wrong where they differ), and from when to when. A word that was left out (heard None) has the time between its
    neighbours; one that was put in (expected None) has the place of the next word written. seconds: of the audio.
    Raises ValueError when nothing that can be said was written.
    """
    expected, words = normalise(written).split(), normalised_words(heard)
    if not expected:
        raise ValueError("no words were written")
    starts = [word.start for word in words] + [seconds]
    ends = [0.0] + [word.end for word in words]
    marks = []

    def mark(place: int, at: int, wanted: str | None, found: Word | None) -> None:
        start, end = (found.start, found.end) if found else (ends[at], max(ends[at], starts[at]))
        said = found.text if found else None
        marks.append({"place": place, "expected": wanted, "heard": said, "start": start, "end": end})

    for chunk in jiwer.process_words(" ".join(expected), " ".join(word.text for word in words)).alignments[0]:
        places = range(chunk.ref_start_idx, chunk.ref_end_idx)
        there = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        if chunk.type == "insert":
            for at in there:
                mark(chunk.ref_start_idx, at, None, words[at])
        elif chunk.type == "delete":
            for place in places:
                mark(place, chunk.hyp_start_idx, expected[place], None)
        else:
            for place, at in zip(places, there, strict=True):
                mark(place, at, expected[place], words[at])
    return marks


def normalised_words(heard: Sequence[Word]) -> list[Word]:
    """What was heard as `normalise` spells the whole of it, each word with the time of those that it was made of.

    "21" gives two words of one time, "hundred", "and", "five" two words.
    """
    texts = [word.text for word in heard]
    spelt = normalise(" ".join(texts)).split()
    counts = [len(normalise(" ".join(texts[: n + 1])).split()) for n in range(len(texts))]
    first = [next(n for n, count in enumerate(counts) if count > k) for k in range(len(spelt))]
    # It lasts until the next one begins: what normalising left out between them belongs to it.
    last = [max(n, after - 1) for n, after in zip(first, [*first[1:], len(texts)], strict=False)]
    return [Word(text, heard[a].start, heard[b].end) for text, a, b in zip(spelt, first, last, strict=True)]
