"""One spelling for text that is compared: what was asked for, what was written and what was heard.

`normalise` gives lower-case words separated by one space:
- case is folded and accents are dropped ("Café" = "cafe"); punctuation becomes a space, apostrophes inside words stay;
- numbers are spelt as American English says them: "21" = "twenty-one" = "twenty one", "1,205" = "one thousand two
  hundred five" ("and" and "a hundred" are ironed out too), "3.50" = "three point five zero", "-4" = "minus four",
  "21st" = "twenty first"; numbers with a leading zero or above 10^15 are read digit by digit;
- "%", "&", "+", "=", "×" and "÷" are said as words.
Years are read as numbers and contractions are left alone ("it's" is not "it is"): whoever quotes an error rate says so.
"""

import re
import unicodedata

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_SYMBOLS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "×": "times", "÷": "divided by"}
_AND = re.compile(rf"\b(hundred|{'|'.join(_SCALES)}) and (?=(?:{'|'.join(_SMALL)})\b)")
_A_HUNDRED = re.compile(rf"\ba (?=(?:hundred|{'|'.join(_SCALES)})\b)")


def spell(n: int) -> str:
    """0 ≤ n < 10^15 in words: 1205 → "one thousand two hundred five"."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 2] + _tail(n % 10)
    if n < 1000:
        return f"{_ONES[n // 100]} hundred" + _tail(n % 100)
    name, scale = max(((w, s) for w, s in _SCALES.items() if s <= n), key=lambda pair: pair[1])
    return f"{spell(n // scale)} {name}" + _tail(n % scale)


def normalise(text: str) -> str:
    """The one spelling of `text`; "" when nothing in it can be said. Applying it twice changes nothing."""
    text = unicodedata.normalize("NFKD", text.casefold()).casefold()
    text = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", text))
    text = re.sub("[’‘ʼ]", "'", text)
    for symbol, word in _SYMBOLS.items():
        text = text.replace(symbol, f" {word} ")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\w)[-−](?=\d)", " minus ", text)
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda m: f" {_ordinal(m[1])} ", text)
    text = re.sub(r"(\d+)\.(\d+)", lambda m: f" {_cardinal(m[1])} point {_digits(m[2])} ", text)
    text = re.sub(r"\d+", lambda m: f" {_cardinal(m[0])} ", text)
    text = re.sub(r"[^\w\s']|_", " ", text)
    text = re.sub(r"(?<!\w)'+|'+(?!\w)|'{2,}", " ", text)
    text = " ".join(text.split())
    return _A_HUNDRED.sub("one ", _AND.sub(r"\1 ", text))


def numbers_in(text: str) -> list[float]:
    """Every number said in `text`, in order: "seven plus minus four is 3.5" → [7.0, -4.0, 3.5]; no ordinals."""
    words = normalise(text).split()
    found, i = [], 0
    while i < len(words):
        negative = words[i] in ("minus", "negative")
        value, end = _read_number(words, i + negative)
        if value is not None:
            found.append(-value if negative else value)
        i = max(end, i + 1)
    return found


def _tail(rest: int) -> str:
    return f" {spell(rest)}" if rest else ""


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(d)] for d in digits)


def _cardinal(digits: str) -> str:
    by_digit = len(digits) > 15 or (len(digits) > 1 and int(digits[0]) == 0)
    return _digits(digits) if by_digit else spell(int(digits))


def _ordinal(digits: str) -> str:
    *head, last = _cardinal(digits).split()
    last = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*head, last])


def _read_number(words: list[str], start: int) -> tuple[float | None, int]:
    """The number that begins at words[start] and the position after it; None when none begins there."""
    total = group = 0
    room, next_scale = 1000, 10**15  # what may follow must be smaller: "twenty one" is one number, "twenty twelve" two
    i = start
    while i < len(words):
        word = words[i]
        if word in _SMALL and _SMALL[word] < room and (_SMALL[word] > 0 or i == start):
            group += _SMALL[word]
            room = 10 if _SMALL[word] >= 20 else 0
        elif word == "hundred" and 0 < group < 100:
            group, room = group * 100, 100
        elif word in _SCALES and group > 0 and _SCALES[word] < next_scale:
            next_scale = _SCALES[word]
            total, group, room = total + group * next_scale, 0, 1000
        else:
            break
        i += 1
    if i == start:
        return None, start
    decimals = i + 1
    while i < len(words) and words[i] == "point" and decimals < len(words) and _SMALL.get(words[decimals], 10) < 10:
        decimals += 1
    if decimals == i + 1:
        return float(total + group), i
    fraction = "".join(str(_SMALL[w]) for w in words[i + 1 : decimals])
    return float(f"{total + group}.{fraction}"), decimals
