"""How many phones and syllables a text has, in US English: by PocketSphinx's CMU dictionary, else by the letters."""

import re
from functools import lru_cache

from elocute.data.normalise import normalise

_VOWELS = re.compile(r"[aeiouy]+")
_CONSONANTS = re.compile(r"tch|sch|sh|ch|th|ph|wh|ck|ng|dg|gh|([b-df-hj-np-tv-z])\1|[b-df-hj-np-tv-z]")
_SILENT_E = re.compile(r"[^aeiouyl]e$|[^aeiouydt]ed$")  # "made" and "walked", not "table" and "wanted"


def count_phones(text: str) -> int:
    """Phones of `text` once it is normalised (data/normalise.py); 0 when nothing in it can be said."""
    return sum(phones for phones, _ in map(_word, normalise(text).split()))


def count_syllables(text: str) -> int:
    """Syllables, as `count_phones`."""
    return sum(syllables for _, syllables in map(_word, normalise(text).split()))


@lru_cache(maxsize=100_000)
def _word(word: str) -> tuple[int, int]:
    """Phones and syllables of one word: its first pronunciation in the dictionary."""
    return dictionary().get(word) or by_letters(word)


def by_letters(word: str) -> tuple[int, int]:
    """Phones and syllables of a word that no dictionary has: a run of vowels is one phone and one syllable, "sh", "ck",
    "tt" and their like are one phone, an "e" or "ed" at the end may be silent; at least one of each. How wrong that is
    over the dictionary's own words: docs/prosody-rewards.md.
    """
    syllables = max(1, len(_VOWELS.findall(word)) - bool(_SILENT_E.search(word)))
    return syllables + sum(1 for _ in _CONSONANTS.finditer(word)), syllables


@lru_cache(maxsize=1)
def dictionary() -> dict[str, tuple[int, int]]:
    """Phones and syllables of PocketSphinx's words; "read(2)" is the second pronunciation of "read"."""
    from pocketsphinx import get_model_path

    found = {}
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        for line in file:
            word, *phones = line.split()
            found.setdefault(word, (len(phones), sum(phone[0] in "AEIOU" for phone in phones)))
    return found
