import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.normalise import normalise, numbers_in, spell


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("21", "twenty one"),
        ("Twenty-One!", "twenty one"),
        ("1,205", "one thousand two hundred five"),
        ("One thousand two hundred AND five", "one thousand two hundred five"),
        ("a hundred", "one hundred"),
        ("3.50", "three point five zero"),
        ("it's -4", "it's minus four"),
        ("7-4", "seven four"),
        ("the 21st, the 30th and the 12th", "the twenty first the thirtieth and the twelfth"),
        ("007", "zero zero seven"),
        ("50% & more", "fifty percent and more"),
        ("2+2=4", "two plus two equals four"),
        ("Café's 'quoted' don’t", "cafe's quoted don't"),
        ("C. A. T.", "c a t"),
        ("  \n\t ", ""),
        ("?!…", ""),
        ("1" * 16, " ".join(["one"] * 16)),
    ],
)
def test_one_spelling(text, expected):
    assert normalise(text) == expected


@given(st.text(max_size=40))
def test_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


@given(st.integers(0, 10**15 - 1))
def test_a_number_is_read_back_from_digits_and_from_words(n):
    assert numbers_in(str(n)) == numbers_in(f"{n:,}") == numbers_in(spell(n)) == [float(n)]
    assert numbers_in(f"-{n}") == [float(-n)]


@given(st.lists(st.integers(0, 99), max_size=5))
def test_numbers_keep_apart(numbers):
    assert numbers_in(", comma ".join(map(str, numbers))) == [float(n) for n in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seven plus minus four is 3.5", [7.0, -4.0, 3.5]),
        ("twenty twelve", [20.0, 12.0]),
        ("one two three", [1.0, 2.0, 3.0]),
        ("nineteen hundred", [1900.0]),
        ("two hundred and five thousand and six", [205006.0]),
        ("3.05", [3.05]),
        ("hundred of them, at that point", []),
        ("", []),
    ],
)
def test_numbers_in(text, expected):
    assert numbers_in(text) == expected
