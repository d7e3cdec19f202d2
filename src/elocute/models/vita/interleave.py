"""The text and speech of an answer in VITA-Audio's order, and an answer read back.

A ratio list [t1, a1, t2, a2 …] cuts the text into chunks of t1, t2 … tokens and the units into chunks of a1 − 2,
a2 − 2 … – the markers around a chunk of speech are counted with it – the last size repeating; then text chunk, `[B]`
speech chunk `[E]`, next text chunk … Where one side runs out of chunks, the rest of the other goes into the last pair:

    [1, 10, 4, 10], 10 text tokens, 40 units:   t [B] 8 [E] tttt [B] 8 [E] tttt [B] 8 [E] t [B] 16 [E]
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from elocute.errors import InputError

DEFAULT_RATIO = (1, 10, 4, 10)


def check_ratio(ratio: Sequence[int]) -> None:
    """InputError unless `ratio` is a list that can be cut by."""
    numbers = isinstance(ratio, Sequence) and all(type(count) is int for count in ratio)
    if not numbers or len(ratio) < 2 or len(ratio) % 2 or min(ratio[::2]) < 1 or min(ratio[1::2]) < 3:
        raise InputError(
            "text_audio_interval_ratio: expected pairs [text, audio, text, audio …], text at least 1 and audio, which "
            f"counts its two markers, at least 3, got {json.dumps(ratio)}"
        )


def read_ratio(mode: Sequence[int] | None, said: Sequence[int] | None = None) -> Sequence[int]:
    """The ratio of a folder: what its elocute.json says, or the one it was trained with, its `mtp_inference_mode`.

    Where there is none, or one without speech as [8192, 0], the default. InputError for what is said and is no ratio.
    """
    if said is not None:
        check_ratio(said)
        return said
    try:
        check_ratio(mode or ())
    except InputError:
        return DEFAULT_RATIO
    return mode


def interleave(
    content: Sequence[int], begin: int, end: int, ratio: Sequence[int] = DEFAULT_RATIO, *, where: str = "the answer"
) -> list[int]:
    """An answer's ids, its speech in one run from `begin` to `end`, → the same ids in the order of `ratio`.

    What holds no speech, or nothing but speech, stays as it is. InputError, naming `where`, for more than one run of
    speech, for one without both its markers, or for an empty one: its answer would lose its text.
    """
    check_ratio(ratio)
    content = list(content)
    begins, ends = content.count(begin), content.count(end)
    if begins == ends == 0:
        return content
    if begins != 1 or ends != 1 or content.index(end) < content.index(begin):
        raise InputError(
            f"{where}: expected its speech in one run between two markers, got {begins} and {ends} of them"
        )
    start, stop = content.index(begin), content.index(end)
    text, units = content[:start] + content[stop + 1 :], content[start + 1 : stop]
    if not units:
        raise InputError(f"{where}: its run of speech is empty")
    if not text:
        return content
    texts = list(_chunks(text, ratio[::2]))
    speech = list(_chunks(units, [count - 2 for count in ratio[1::2]]))
    pairs = min(len(texts), len(speech))
    ids: list[int] = []
    for text_chunk, speech_chunk in zip(_merged(texts, pairs), _merged(speech, pairs), strict=True):
        ids += [*text_chunk, begin, *speech_chunk, end]
    return ids


def _chunks(ids: list[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    start = 0
    for size in chain(sizes, repeat(sizes[-1])):
        if start >= len(ids):
            return
        yield ids[start : start + size]
        start += size


def _merged(chunks: list[list[int]], count: int) -> list[list[int]]:
    """`count` chunks: all beyond are part of the last."""
    return [*chunks[: count - 1], [token for chunk in chunks[count - 1 :] for token in chunk]]


@dataclass(frozen=True)
class Heard:
    """An answer, read. text: ids that are text; units: from 0; ended: it came to its end; runs: of speech.

    well_marked: every run of speech begins with one marker and ends with one. The schedule of multi-token prediction
    counts tokens and knows no markers, so a model's own answers may lack or double them; the speech is whole all the
    same.
    """

    text: list[int]
    units: list[int]
    ended: bool
    runs: int
    well_marked: bool


def read_answer(
    ids: Sequence[int], *, begin: int, end: int, first_unit: int, n_units: int, stops: Sequence[int]
) -> Heard:
    """Read an answer's ids, without its prompt, up to the first of `stops`.

    Text: ids below `begin`; units: from `first_unit` on. Ids between, the other control tokens, are neither. InputError
    for an id behind the last unit: no token of the model has it.
    """
    ids = [int(token) for token in ids]
    stop = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    kinds = "".join(_kind(token, begin, end, first_unit, n_units) for token in ids[:stop])
    return Heard(
        text=[token for token, kind in zip(ids, kinds, strict=False) if kind == "t"],
        units=[token - first_unit for token, kind in zip(ids, kinds, strict=False) if kind == "u"],
        ended=stop < len(ids),
        runs=len(re.findall("u+", kinds)),
        well_marked=re.fullmatch("[t-]*(Bu+E[t-]*)*", kinds) is not None,
    )


def _kind(token: int, begin: int, end: int, first_unit: int, n_units: int) -> str:
    if token >= first_unit + n_units:
        raise InputError(f"token {token} has no meaning: the last unit is {first_unit + n_units - 1}")
    if token >= first_unit:
        return "u"
    if token < begin:
        return "t"
    return {begin: "B", end: "E"}.get(token, "-")
