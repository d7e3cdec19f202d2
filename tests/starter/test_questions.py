"""Which questions are asked: sizes, no overlap, the teacher's error rate, and rows that the toolkit reads."""

import json
from collections import Counter

import numpy as np
import pytest

from elocute.data.rows import read_rows
from starter.questions import ROWS, accepted_forms, draw_rows, draw_written


@pytest.fixture(scope="module", name="rows")
def drawn_rows():
    return draw_rows(0)


def test_splits_have_the_sizes_announced(rows):
    for index, split in enumerate(("base", "train", "heldout")):
        assert Counter(row.item.category for row in rows[split]) == {c: counts[index] for c, counts in ROWS.items()}
    assert len(rows["heldout"]) >= 1200 and len(rows["train"]) >= 1200


def test_no_fact_is_in_two_splits_and_no_question_comes_twice_in_one_voice(rows):
    facts = {split: {row.item.fact for row in asked} for split, asked in rows.items()}
    assert not facts["base"] & facts["heldout"] and not facts["train"] & facts["heldout"]
    assert not facts["base"] & facts["train"]
    asked = [(row.item.question, row.style) for split in rows.values() for row in split]
    assert len(set(asked)) == len(asked)
    assert len({row.id for split in rows.values() for row in split}) == len(asked)


def test_base_training_hears_and_says_every_word_of_the_other_splits(rows):
    def words(split, part):
        return {word for row in rows[split] for word in part(row).split()}

    asked, answered = (lambda row: row.item.question), (lambda row: row.item.answer)
    for split in ("train", "heldout"):
        assert words(split, asked) <= words("base", asked)
        assert words(split, answered) <= words("base", lambda row: row.target)


def test_same_seed_same_rows(rows):
    assert draw_rows(0) == rows
    assert draw_rows(1)["heldout"] != rows["heldout"]


def test_teacher_is_right_in_about_six_of_ten_and_held_out_targets_are_true(rows):
    def right(split, drawn=rows):
        return np.mean([row.target == row.item.answer for row in drawn[split]])

    assert 0.5 < right("base") < 0.65 and 0.57 < right("train") < 0.67 and right("heldout") == 1
    assert right("train", draw_rows(0, {"train": 0.2})) > 0.85


def test_rows_are_in_the_schema(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row.as_json("q.safetensors", "a.safetensors")) + "\n" for row in rows["train"]))
    for example, row in zip(read_rows(path, check_audio=False), rows["train"], strict=True):
        assert example.target_text == row.target and example.question_text == row.item.question
        assert example.audios[0].key == row.id and example.target_audio.key == row.target.replace(" ", "_")
        assert example.columns["teacher_right"] == (row.target in example.columns["answer"])
        assert example.columns["category"] == row.item.category


def test_written_rows_ask_base_facts_only(rows, tmp_path):
    written = draw_written(0, 3000)
    elsewhere = {row.item.fact for split in ("train", "heldout") for row in rows[split]}
    assert len(written) == 3000 and not elsewhere & {row.item.fact for row in written}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row.as_json("q.safetensors", "a.safetensors")) + "\n" for row in written))
    assert all(row.audios == () and row.messages[0].content == row.question_text
               for row in read_rows(path, check_audio=False))  # fmt: skip


def test_accepted_forms():
    assert accepted_forms("thirty seven") == ["thirty seven", "37"]
    assert accepted_forms("banana") == ["banana"]
