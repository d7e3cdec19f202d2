"""The stories: same seed same stories, no tale in two splits, and endings that can be told apart by sense alone."""

import re

import pytest

from starter.stories import BOYS, GIRLS, RELATIVES, SPLITS, draw_stories, plots, tales, vocabulary

PRONOUNS = set("she he her his him".split())


@pytest.fixture(scope="module")
def stories():
    return {split: draw_stories(split, 400, seed=3) for split in SPLITS}


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def test_same_seed_same_stories(stories):
    assert draw_stories("dev", 50, seed=3) == stories["dev"][:50]
    assert draw_stories("dev", 50, seed=4) != stories["dev"][:50]


def test_no_tale_and_no_story_is_in_two_splits(stories):
    everything = [tale for split in SPLITS for tale in tales(split, seed=3)]
    assert len(everything) == len(plots()) * len(GIRLS + BOYS) * len(RELATIVES)
    assert len({(t.plot.topic, t.plot.row, t.hero, t.relative) for t in everything}) == len(everything)
    told = [story.text for split in SPLITS for story in stories[split]]
    assert len(set(told)) == len(told)
    assert len({story.id for split in SPLITS for story in stories[split]}) == len(told)


def test_every_plot_is_told_in_training():
    assert {(t.plot.topic, t.plot.row) for t in tales("train")} == {(p.topic, p.row) for p in plots()}


def test_there_are_thousands():
    assert len({story.text for story in draw_stories("train", 3000)}) == 3000


def test_a_tale_is_told_again_in_other_words():
    first = len(tales("dev"))
    again = draw_stories("dev", first + 100)
    tale = (again[first].topic, again[first].row, again[first].hero)
    assert again[first].id.endswith("-1") and len({s.text for s in again}) == first + 100
    assert any((s.topic, s.row, s.hero) == tale for s in again[:first])


def test_the_three_endings_differ_and_name_nobody_else(stories):
    for story in stories["test"]:
        assert len({story.ending, story.swapped, story.hard}) == 3
        said = " ".join((story.text, story.swapped, story.hard)).split()
        heroes = {word for word in said if word.strip(".") in GIRLS + BOYS}
        assert {hero.strip(".") for hero in heroes} <= {story.hero}
        relatives = {word for word in words(" ".join(said)) if word in RELATIVES}
        assert len(relatives) <= 1


def test_length_does_not_tell_the_right_ending(stories):
    lengths = {
        name: sum(len(getattr(story, name).split()) for story in stories["test"])
        for name in ("ending", "swapped", "hard")
    }  # fmt: skip
    assert max(lengths.values()) < 1.05 * min(lengths.values())


def test_wrong_endings_are_right_endings_of_others(stories):
    """No ending is suspicious by itself: what is wrong here is right elsewhere."""
    people = PRONOUNS | set(RELATIVES) | {name.lower() for name in GIRLS + BOYS}

    def told(ending):
        return tuple(word for word in words(ending) if word not in people)

    right = {told(story.ending) for story in draw_stories("train", 6000)}
    for kind in ("hard", "swapped"):
        wrong = [told(getattr(story, kind)) for story in stories["test"]]
        assert sum(ending in right for ending in wrong) > 0.95 * len(wrong)


def test_every_sentence_is_whole(stories):
    for story in stories["train"]:
        for sentence in (*story.sentences, story.ending, story.swapped, story.hard):
            assert re.fullmatch(r"[A-Z][A-Za-z ,]+\.", sentence), sentence
            assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]", sentence), sentence
            assert 3 <= len(sentence.split()) <= 20


def test_vocabulary_is_small_and_complete(stories):
    known = set(vocabulary())
    assert 600 < len(known) < 900
    for told in stories.values():
        for story in told:
            assert set(words(f"{story.text} {story.swapped} {story.hard}")) <= known
