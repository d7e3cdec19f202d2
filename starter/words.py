"""The words of the starter world: numbers, the calendar, opposites, and nouns in groups.

Chosen so that a small recogniser tells them apart when the answering voice says them alone.
"""

TENS = dict(zip(range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True))
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
LARGEST_NUMBER = 99

DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
GROUPS = {
    "animals": "dog horse tiger zebra rabbit monkey chicken".split(),
    "colors": "red green white brown yellow purple".split(),
    "foods": "rice apple pizza sugar banana potato cheese".split(),
    "days": DAYS,
}
COUNTED_GROUPS = ("animals", "colors", "foods")
OPPOSITES = (
    ("summer", "winter"), ("morning", "evening"), ("always", "never"), ("open", "closed"), ("inside", "outside"),
    ("old", "young"), ("early", "late"), ("winner", "loser"), ("brother", "sister"), ("fast", "slow"),
)  # fmt: skip
NOUNS = [word for group in COUNTED_GROUPS for word in GROUPS[group]]
SPELLED = NOUNS + [word for pair in OPPOSITES for word in pair]


def number_words(number: int) -> str:
    """0 … 99 in words: 37 → "thirty seven"."""
    if not 0 <= number <= LARGEST_NUMBER:
        raise ValueError(f"the world counts from 0 to {LARGEST_NUMBER}, not to {number}")
    if number < 20:
        return ONES[number]
    tens, ones = number // 10 * 10, number % 10
    return TENS[tens] if ones == 0 else f"{TENS[tens]} {ONES[ones]}"


NUMBERS = {number_words(n): n for n in range(LARGEST_NUMBER + 1)}
