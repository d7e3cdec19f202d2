"""What cannot be pairs: malformed rows and files, ids that come twice, thresholds that leave nothing."""

import json

import pytest

from elocute.errors import InputError
from elocute.pipelines.pairs import source
from elocute.pipelines.pairs.build import build_pairs
from tests.pipelines.pair_files import as_lines, built, candidate, options, row, some_rows

GOOD = json.dumps(some_rows(1)[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "row: expected JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[]", "row: expected an object, got a list"),
        ('{"output": {}}', "messages: expected a user's turn before the answer, got none"),
        (GOOD.replace("user", "human"), 'messages[0].role: expected system, user or assistant, got "human"'),
        (GOOD.replace('"content": "four?"', '"content": 4'), "messages[0].content: expected a string, got a number"),
        (GOOD.replace("four?", "<|audio|>"), "audios: expected 1 paths, one for each <|audio|> in messages, got 0"),
        (GOOD.replace('"output"', '"outputs"'), "output: expected an object of candidates, got none"),
        (GOOD.replace('"output": {', '"output": [{').replace('}, "id"', '}], "id"'), "output: expected an object"),
        (GOOD.replace('{"0": {', '{"0": 3, "9": {'), "output.0: expected an object, got a number"),
        (
            '{"messages": [], "output": {"7": {"gemini_score": {"semantic_score": "5"}}}}',
            "output.7.gemini_score.semantic_score: expected a number or null, got a string",
        ),
        (GOOD.replace('"output-text": "say 0"', '"output-text": 5'), "output.0.output-text: expected a string or null"),
        (GOOD.replace('"id": "q0"', '"id": true'), "id: expected a number or a string or null, got true or false"),
        (GOOD.replace("q0", "\\ud800"), "row: expected Unicode text, got half of a surrogate pair"),
        (GOOD.replace('"q0"', "NaN"), "row: expected JSON: NaN is no JSON number"),
        (
            GOOD.replace('"output-text"', '"output-units": [1.5], "output-text"'),
            ".output-units: expected a list of integers, at least 0",
        ),
        (
            GOOD.replace('"output-text"', '"output-units": [[1, 2], 3], "output-text"'),
            ".output-units: expected a list of integers, at least 0, or of frames of them",
        ),
        (
            GOOD.replace('"output-text"', '"output-tokens": [[]], "output-text"'),
            ".output-tokens: expected a list of integers, at least 0",
        ),
        ('{"a": ' + "[" * 10**5, "row: expected JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(folders, line, said):
    """Every one of them, whatever block it stands in; nothing is written."""
    good = as_lines(some_rows(30))
    for name, content in (
        ("lines", f"{good}\n{line}\n{GOOD.replace('q0', 'x')}\n{line}\n"),
        (
            "array",
            f"[\n{good.rstrip().replace(chr(10), ',' + chr(10))},\n\n{line},\n{GOOD.replace('q0', 'x')},\n{line}]",
        ),
    ):
        if name == "array" and (line == "[]" or line.count("{") != line.count("}")):
            continue  # said of the array as a whole: see below
        folder = folders(name)
        with pytest.raises(InputError) as error:
            built(folder, content)
        first, second = str(error.value).splitlines()
        where = ("c.jsonl:32: ", "c.jsonl:34: ") if name == "lines" else ("c.jsonl:33: [30]: ", "c.jsonl:35: [32]: ")
        assert where[0] in first and said in first and where[1] in second and said in second
        assert [path.name for path in folder.iterdir()] == ["c.jsonl"]


def test_text_that_is_no_unicode_is_named_even_where_it_passes_through(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(GOOD[:-1].encode() + b', "x": "\xff"}\n')
    with pytest.raises(InputError, match=r"c.jsonl:1: row: expected UTF-8 text: byte \d+ is not"):
        build_pairs(options(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected at least one row"),
        (" \n\n", "expected at least one row"),
        ("[ ]", "expected at least one row, the array holds none"),
        ("[7]", "c.jsonl:1: expected objects, or ], got '7]'"),
        (f"[{GOOD},\n 7]", "c.jsonl:1: after row 1: expected a comma and an object, or ], got"),
        (f"[{GOOD},\n" + GOOD[:-9], "c.jsonl:1: after row 1: expected a comma and an object, or ], got"),
        (f"[{GOOD}\n", "got the end of the file"),
        (f"[{GOOD}] []", "got '] []'"),
        (f"[{GOOD} {GOOD}]", "c.jsonl:1: [1]: row: expected a comma before it, and only one"),
        (f"[{GOOD},\n, {GOOD}]", "c.jsonl:2: [1]: row: expected a comma before it, and only one"),
        (f"[, {GOOD}]", "c.jsonl:1: [0]: row: expected"),
    ],
)
def test_a_file_that_is_cut_or_mispunctuated_is_refused(tmp_path, content, said):
    with pytest.raises(InputError) as error:
        built(tmp_path, content)
    assert said in str(error.value) and "c.jsonl" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_comma_that_lacks_between_two_blocks_is_missed_too(tmp_path):
    rows = some_rows(40)
    assert built(tmp_path, _without_comma(rows, 39), part_bytes=400)
    (tmp_path / "bad").mkdir()
    with pytest.raises(InputError, match=r"c.jsonl:1: \[20\]: row: expected a comma before it"):
        built(tmp_path / "bad", _without_comma(rows, 19), part_bytes=400)


def _without_comma(rows, place):
    parts = [json.dumps(one) + ("," if number not in (place, len(rows) - 1) else "") for number, one in enumerate(rows)]
    return "[" + " ".join(parts) + "]"


def test_an_endless_row_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LONGEST_ROW", 10_000)
    monkeypatch.setattr(source, "WINDOW", 1000)
    for content in ('[{"a": "' + "x" * 30_000, '{"a": "' + "x" * 30_000):
        with pytest.raises(InputError, match="c.jsonl: expected rows of at most"):
            built(tmp_path, content)


def test_an_id_that_comes_twice_is_refused(folders):
    rows = some_rows(50)
    rows[40]["id"] = rows[3]["id"]
    for name, content, where in (
        ("lines", as_lines(rows), ("c.jsonl:41: ", "c.jsonl:4")),
        ("array", json.dumps(rows), ("c.jsonl:1: [40]: ", "c.jsonl:1: [3]")),
    ):
        with pytest.raises(InputError) as error:
            built(folders(name), content)
        (line,) = str(error.value).splitlines()
        assert line.endswith(where[1]) and f"{where[0]}id: 'q3' is already the id at" in line
    rows[3]["output"]["0"], rows[3]["output"]["1"] = rows[3]["output"]["1"], rows[3]["output"]["0"]  # pairs' own ids
    with pytest.raises(InputError, match="c.jsonl:41: id: 'q3' is already the id at"):
        built(folders("several"), as_lines(rows), pairs_per_prompt=2)
    assert len(built(folders("without"), as_lines({**one, "id": None} for one in rows)).splitlines()) == 50


def test_thresholds_that_leave_nothing_are_an_error_with_counts(tmp_path):
    rows = [*some_rows(5), row(candidate(broken="no end"), candidate(text="five"))]
    with pytest.raises(InputError) as error:
        built(tmp_path, as_lines(rows), min_score_gap=9.0)
    assert str(error.value) == (
        f"{tmp_path}/c.jsonl: no pair is left of 6 rows: gap below 9: 5; fewer than two usable candidates: 1 "
        "(of 22 candidates, broken: 1)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_more_fields_than_any_table_has_are_refused(tmp_path, workers):
    rows = [{**one, **{f"field {number} {i}": 1 for i in range(200)}} for number, one in enumerate(some_rows(6))]
    with pytest.raises(InputError, match=r"c.jsonl:6: row: expected at most 1000 different fields in all rows"):
        built(tmp_path, as_lines(rows), workers=workers, part_bytes=10**6)
