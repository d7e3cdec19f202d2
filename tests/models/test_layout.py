"""The layout: what is assembled can be read back, markers are forced, and nothing else is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.models.layout import Cursor, Layout

RATIOS = st.one_of(
    st.sampled_from(["text-first"]),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10)), min_size=1, max_size=3),
)


def make(ratio, markers=True) -> Layout:
    extra = {"speech_begin": 8, "speech_end": 9} if markers else {}
    return Layout(ratio=ratio, first_unit=20, n_units=30, text_end=6, answer_end=7, **extra)


@given(RATIOS, st.booleans(), st.lists(st.integers(10, 19), max_size=9), st.lists(st.integers(0, 29), max_size=40))
def test_assembled_answers_read_back(ratio, markers, text, units):
    layout = make(ratio, markers)
    try:
        tokens = layout.assemble(text, units)
    except InputError:
        assert len(units) < 10 * len(text)  # only speech that is too short for its text is refused
        return
    cursor = layout.read(tokens.ids.tolist())
    assert cursor.done and cursor.broken is None
    assert (cursor.text_ids, cursor.units) == (text, units)
    replayed = cursor.tokens()
    assert replayed.text.equal(tokens.text) and replayed.action.equal(tokens.action)
    forced = tokens.ids[~tokens.action].tolist()
    assert set(forced) <= {8, 9} and (markers or not forced)


def test_text_end_and_answer_end_are_text_units_and_markers_speech():
    tokens = make([(1, 2)]).assemble([10], [0, 1, 2])
    assert tokens.ids.tolist() == [10, 8, 20, 21, 9, 6, 8, 22, 7]
    assert tokens.text.tolist() == [True, False, False, False, False, True, False, False, True]
    assert tokens.action.tolist() == [True, False, True, True, False, True, False, True, True]


@pytest.mark.parametrize("ids", [[20], [10, 8, 10], [7], [10, 8, 7], [10, 9]])
def test_wrong_places_break_the_answer(ids):
    assert make([(1, 2)]).read(ids).broken


def test_defect_12_a_cut_answer_is_broken_not_complete():
    cursor = make([(1, 2)]).read([10, 8, 20])
    cursor.close()
    assert cursor.broken.startswith("no end")


def test_a_cut_answer_has_no_end_where_it_needs_none():
    layout = Layout("speech-only", first_unit=20, n_units=30, text_end=None, answer_end=7, open_ended=True)
    assert layout.assemble([], [0, 1]).ids.tolist() == [20, 21, 7]
    assert layout.assemble([], [0, 1], cut=True).ids.tolist() == [20, 21]
    for strict in (replace(layout, open_ended=False), make([(1, 2)]), make("text-first")):
        with pytest.raises(InputError, match="the answer was cut before its end; this model's answers must end"):
            strict.assemble([10] if strict.text_end else [], [0, 1], cut=True)


def test_speech_only_starts_with_speech():
    cursor = Cursor(make("speech-only"))
    assert cursor.forced() == (8,)
