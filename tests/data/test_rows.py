import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.rows import check_rows, each_row, read_rows
from elocute.data.types import AudioRef, Message
from elocute.data.units import write_units
from elocute.errors import InputError

ASK = [{"role": "user", "content": "how much is one plus two"}]
HEAR = [{"role": "user", "content": "<|audio|>"}]


@pytest.fixture
def rows(tmp_path):
    """Writes rows (objects, or lines as they are) and gives the file."""

    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return write


def problem(path, **options):
    with pytest.raises(InputError) as caught:
        read_rows(path, **options)
    return str(caught.value)


def test_every_field_finds_its_place(rows, sound, tmp_path):
    for name in ("q1.wav", "q2.wav", "good.wav", "bad.wav"):
        sound(name)
    messages = [
        {"role": "system", "content": "Answer aloud."},
        {"role": "user", "content": "First: <|audio|>"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "<|audio|> and now?"},
    ]
    row = {
        "id": "r1",
        "messages": messages,
        "audios": ["q1.wav", str(tmp_path / "q2.wav")],
        "sft_target_text": "four",
        "sft_target_audio": "good.wav",
        "rejected_text": "five",
        "rejected_audio": "bad.wav",
        "task_type": "s2s",
        "question_text": "what comes next",
    }
    columns = {
        "history_text": "h",
        "chosen_score": 4.5,
        "rejected_score": 2,
        "score_gap": 2.5,
        "chosen_key": "a",
        "rejected_key": "b",
        "source_dataset": "made up",
        "answer": {"number": 4},
    }
    [example] = read_rows(rows(row | columns))
    assert example.messages == tuple(Message(**message) for message in messages)  # earlier answers stay as context
    assert example.audios == (AudioRef(tmp_path / "q1.wav"), AudioRef(tmp_path / "q2.wav"))
    assert (example.id, example.target_text, example.target_audio) == ("r1", "four", AudioRef(tmp_path / "good.wav"))
    assert (example.rejected_text, example.rejected_audio) == ("five", AudioRef(tmp_path / "bad.wav"))
    assert (example.task_type, example.question_text) == ("s2s", "what comes next")
    assert example.columns == columns and (example.file, example.line) == (str(tmp_path / "rows.jsonl"), 1)


def test_blank_lines_a_byte_order_mark_and_missing_fields(rows):
    missing = {"audios": None, "rejected_audio": "", "sft_target_text": ""}
    path = rows("", {"messages": ASK, **missing}, "  ", {"messages": ASK})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    first, second = read_rows(path)
    assert (first.line, second.line) == (2, 4)
    assert first.audios == () and first.target_text is first.rejected_audio is None and "audios" not in first.columns


def test_line_separators_inside_text_end_no_line(rows):
    path = rows(json.dumps({"messages": [{"role": "user", "content": "a\u2028b\x85c"}]}, ensure_ascii=False))
    assert read_rows(path)[0].messages[0].content == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("closing", "given", "text", "audio"),
    [
        ("three", {}, "three", None),
        ("three <|audio|>", {}, "three", "a.wav"),
        ("<|audio|>", {}, None, "a.wav"),
        ("", {}, None, None),
        ("three\n<|audio|>", {"sft_target_text": "four"}, "four", "a.wav"),
        ("three <|audio|>", {"sft_target_audio": "b.wav"}, "three", "b.wav"),
        ("three", {"sft_target_text": "four <|audio|>", "sft_target_audio": "b.wav"}, "four", "b.wav"),
    ],
)
def test_a_closing_answer_is_the_target_and_never_context(rows, sound, tmp_path, closing, given, text, audio):
    for name in ("q.wav", "a.wav", "b.wav"):
        sound(name)
    audios = ["q.wav", "a.wav"] if "<|audio|>" in closing else ["q.wav"]
    row = {"messages": [*HEAR, {"role": "assistant", "content": closing}], "audios": audios, **given}
    [example] = read_rows(rows(row))
    assert example.messages == (Message("user", "<|audio|>"),) and example.audios == (AudioRef(tmp_path / "q.wav"),)
    assert (example.target_text, example.target_audio) == (text, audio and AudioRef(tmp_path / audio))


def test_encoded_audio_is_named_by_store_and_key(rows, tmp_path):
    write_units(tmp_path / "u.safetensors", {"q/1#a": np.arange(3)}, "d")
    row = {"messages": HEAR, "audios": ["u.safetensors#q/1#a"]}
    assert read_rows(rows(row))[0].audios == (AudioRef(tmp_path / "u.safetensors", "q/1#a"),)
    assert "u.safetensors holds no encoded audio called 'q2'" in problem(rows(row | {"audios": ["u.safetensors#q2"]}))
    assert "v.safetensors: store of encoded audio not found" in problem(rows(row | {"audios": ["v.safetensors#q"]}))
    assert "expected a key after the store's name" in problem(rows(row | {"audios": ["u.safetensors"]}))


def test_defect_11_a_missing_question_file_is_an_error_and_the_answer_never_the_question(rows, sound, tmp_path):
    row = {"messages": HEAR, "audios": ["question.wav"], "sft_target_audio": "answer.wav", "sft_target_text": "x"}
    sound("answer.wav")
    path = rows(row)
    assert problem(path) == f"{path}:1: audios[0]: audio file not found: {tmp_path / 'question.wav'}"
    [example] = read_rows(path, check_audio=False)
    assert example.audios == (AudioRef(tmp_path / "question.wav"),)
    # Without a question file named at all, the answer's audio does not fill its place either.
    assert "audios: expected 1 paths" in problem(rows(row | {"audios": []}))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{oops}", "row: expected JSON"),
        ("[1]", "row: expected a JSON object, got a list"),
        ('{"messages": NaN}', "row: expected JSON: NaN is no JSON number"),
        ("[" * 100_000, "row: expected JSON"),
        ({}, "messages: expected a user's turn"),
        ({"messages": "hi"}, "messages: expected a list, got a string"),
        ({"messages": ["hi"]}, 'messages[0]: expected an object {"role", "content"}, got a string'),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0].role: expected system or user or assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: expected a string, got null"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: expected text or <|audio|>"),
        ({"messages": [{"role": "user", "content": "x", "tool": 1}]}, "messages[0]: expected role and content only"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: expected a user's turn"),
        ({"messages": [*ASK, {"role": "system", "content": "x"}]}, "messages: expected a user's turn"),
        ({"messages": HEAR}, "audios: expected 1 paths, one for each <|audio|> in messages, got 0"),
        ({"messages": ASK, "audios": ["rows.jsonl"]}, "audios: expected 0 paths"),
        ({"messages": ASK, "audios": "q.wav"}, "audios: expected a list, got a string"),
        ({"messages": HEAR, "audios": [7]}, "audios[0]: expected a string, got a number"),
        ({"messages": HEAR, "audios": [""]}, "audios[0]: expected a path"),
        ({"messages": HEAR, "audios": ["."]}, "audios[0]: audio file not found"),
        ({"messages": HEAR, "audios": ["a\0b"]}, "audios[0]: audio file not found"),
        ({"messages": HEAR, "audios": ["a" * 5000]}, "audios[0]: audio file not found"),
        ({"messages": ASK, "sft_target_text": 3}, "sft_target_text: expected a string, got a number"),
        ({"messages": ASK, "sft_target_text": "\ud800"}, "sft_target_text: expected Unicode text"),
        ({"messages": ASK, "sft_target_audio": "x.wav"}, "sft_target_audio: audio file not found"),
        ({"messages": ASK, "rejected_audio": ["x.wav"]}, "rejected_audio: expected a string, got a list"),
        ({"messages": ASK, "question_text": {}}, "question_text: expected a string, got an object"),
        ({"messages": ASK, "task_type": True}, "task_type: expected a string, got true or false"),
        ({"messages": ASK, "chosen_score": "4"}, 'chosen_score: expected a finite number, got "4"'),
        ('{"messages": [{"role": "user", "content": "x"}], "score_gap": 1e999}', "score_gap: expected a finite number"),
        ({"messages": ASK, "id": [1]}, "id: expected a string, got a list"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_field(rows, row, expected):
    path = rows({"messages": ASK}, row)
    message = problem(path)
    assert message.startswith(f"{path}:2: ") and expected in message and "\n" not in message


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a").write_bytes(b'{"messages": "\xff"}')
    assert "a:1: row: expected UTF-8 text: byte 15 is not" in problem(tmp_path / "a")


def test_all_that_is_wrong_with_a_row_is_said_at_once(rows):
    message = problem(rows({"messages": ASK, "audios": {}, "task_type": 1, "rejected_audio": "x.wav"}))
    assert "audios: " in message and "task_type: " in message and "rejected_audio: " in message


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_every_bad_row_is_reported_and_no_good_one(tmp_path_factory, good):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": ASK if ok else []}) for ok in good))
    bad = [line for line, ok in enumerate(good, start=1) if not ok]
    if not bad:
        assert len(read_rows(path)) == len(good)
        return
    lines = problem(path).split("\n")
    assert [line.split(": ")[0] for line in lines[:50]] == [f"{path}:{line}" for line in bad[:50]]
    assert lines[50:] == ([f"… and {len(bad) - 50} more bad rows"] if len(bad) > 50 else [])


def test_a_check_of_all_rows_reports_the_first_fifty_that_fail(rows):
    examples = read_rows(rows(*({"messages": ASK, "n": n} for n in range(120))))
    checked = []

    def odd(example):
        checked.append(example.columns["n"])
        if example.columns["n"] % 2:
            raise InputError(f"{example.where}: n: expected an even number")

    with pytest.raises(InputError) as caught:
        check_rows(examples, odd)
    lines = str(caught.value).split("\n")
    assert lines[:2] == [f"{examples[n].file}:{n + 1}: n: expected an even number" for n in (1, 3)]
    assert len(lines) == 51 and lines[-1] == "… and 10 more bad rows"
    assert checked == list(range(120))
    check_rows(examples[::2], odd)


def test_given_ids_must_differ(rows):
    path = rows({"id": "a", "messages": ASK}, {"id": 7, "messages": ASK}, {"id": "a", "messages": ASK})
    assert problem(path) == f"{path}:3: id: 'a' is already the id of line 1"


@given(st.permutations(["a", "b", "c", "d", "a"]))
def test_made_ids_follow_the_content(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": q}]}) for q in questions))
    ids = {example.id: example.messages[0].content for example in read_rows(path)}
    assert len(ids) == 5
    ordered = path.with_name("ordered")
    ordered.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": q}]}) for q in "aabcd"))
    assert ids == {example.id: example.messages[0].content for example in read_rows(ordered)}


def test_files_without_rows(tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    assert problem(tmp_path / "empty") == f"{tmp_path / 'empty'}: expected at least one row, the file holds none"
    assert "cannot be read (No such file" in problem(tmp_path / "missing")
    assert "cannot be read (Is a directory" in problem(tmp_path)


def test_rows_may_hold_the_very_units_of_their_answers(rows, sound, tmp_path):
    sound("good.wav")
    units = {"sft_target_units": [3, 0, 3], "rejected_units": [9], "units_codec": "d1"}
    [example] = read_rows(path := rows({"messages": ASK, "sft_target_audio": "good.wav", **units}))
    assert example.target_audio == AudioRef(tmp_path / "good.wav", units=(3, 0, 3), codec="d1")
    assert example.rejected_audio == AudioRef(path, units=(9,), codec="d1")  # nothing to listen to but the row
    assert not example.columns
    closing = {"messages": [*ASK, {"role": "assistant", "content": "<|audio|>"}], "audios": ["good.wav"], **units}
    [example] = read_rows(rows(closing))
    assert example.target_audio == AudioRef(tmp_path / "good.wav", units=(3, 0, 3), codec="d1")
    [example] = read_rows(rows({"messages": ASK, "units_codec": "d1", "sft_target_units": None}))
    assert example.target_audio is None
    frames = {"rejected_units": [[3, 0], [7, 1]], "rejected_tokens": [5, 3, 0], "units_codec": "d1"}
    [example] = read_rows(path := rows({"messages": ASK, **frames}))
    assert example.rejected_audio == AudioRef(path, units=((3, 0), (7, 1)), tokens=(5, 3, 0), codec="d1")
    assert not example.columns


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sft_target_units": [1]}, "units_codec: expected the digest of the codec that sft_target_units are of, got"),
        ({"rejected_units": [1], "units_codec": 3}, "units_codec: expected a string"),
        ({"rejected_units": [], "units_codec": "d"}, "rejected_units: expected at least one unit, got []"),
        ({"sft_target_units": "1 2", "units_codec": "d"}, "sft_target_units: expected a list, got a string"),
        (
            {"sft_target_units": [1, -1], "units_codec": "d"},
            "sft_target_units[1]: expected a unit (an integer, at least",
        ),
        ({"sft_target_units": [1.0], "units_codec": "d"}, "sft_target_units[0]: expected a unit"),
        ({"sft_target_units": [True], "units_codec": "d"}, "sft_target_units[0]: expected a unit"),
        ({"sft_target_units": [[1, 2], [3]], "units_codec": "d"}, "sft_target_units[1]: expected a unit"),
        ({"sft_target_units": [[1], 2], "units_codec": "d"}, "sft_target_units[1]: expected a unit"),
        ({"sft_target_units": [1, [2]], "units_codec": "d"}, "sft_target_units[1]: expected a unit"),
        ({"sft_target_units": [[]], "units_codec": "d"}, "sft_target_units[0]: expected a unit"),
        ({"sft_target_units": [[1, -2]], "units_codec": "d"}, "sft_target_units[0]: expected a unit"),
        ({"sft_target_tokens": [1]}, "sft_target_units: expected the units that are in sft_target_tokens, got none"),
    ],
)
def test_bad_units_are_named(rows, fields, expected):
    message = problem(rows({"messages": ASK, **fields}))
    assert expected in message and "\n" not in message


def test_an_answer_s_speech_may_have_been_cut(rows, sound, tmp_path):
    sound("good.wav")
    cut = {"sft_target_audio": "good.wav", "sft_target_cut": True, "rejected_cut": True}
    [example] = read_rows(path := rows({"messages": ASK, "rejected_units": [9], "units_codec": "d1", **cut}))
    assert example.target_audio == AudioRef(tmp_path / "good.wav", cut=True)
    assert example.rejected_audio == AudioRef(path, units=(9,), codec="d1", cut=True)
    assert not example.columns
    for missing in (False, None, ""):
        [example] = read_rows(rows({"messages": ASK, **cut, "sft_target_cut": missing}))
        assert example.target_audio == AudioRef(tmp_path / "good.wav") and example.rejected_audio is None


@pytest.mark.parametrize("field", ["sft_target_cut", "rejected_cut"])
@pytest.mark.parametrize(("value", "kind"), [(1, "a number"), ("yes", "a string"), ([], "a list")])
def test_cut_is_true_or_false(rows, field, value, kind):
    path = rows({"messages": ASK, field: value})
    assert problem(path) == f"{path}:1: {field}: expected true or false, got {kind}"


def test_prompt_seconds_cut_the_prompt_and_not_the_answer(rows, sound, tmp_path):
    for name in ("q1.wav", "q2.wav", "a.wav", "r.wav"):
        sound(name)
    messages = [*HEAR, {"role": "assistant", "content": "yes"}, *HEAR, {"role": "assistant", "content": "<|audio|>"}]
    path = rows({"messages": messages, "audios": ["q1.wav", "q2.wav", "a.wav"], "rejected_audio": "r.wav"})
    [example] = read_rows(path, 3.0)
    assert example.audios == tuple(AudioRef(tmp_path / name, seconds=3.0) for name in ("q1.wav", "q2.wav"))
    assert (example.target_audio, example.rejected_audio) == (
        AudioRef(tmp_path / "a.wav"),
        AudioRef(tmp_path / "r.wav"),
    )
    write_units(tmp_path / "u.safetensors", {"k": np.arange(3)}, "d")
    path = rows({"messages": messages, "audios": ["q1.wav", "u.safetensors#k", "u.safetensors#k"]})
    assert problem(path, prompt_seconds=3.0) == (
        f"{path}:1: audios[1]: expected a sound file, for prompt_seconds cuts before anything is encoded, "
        f"got {tmp_path / 'u.safetensors'}#k"
    )


def test_rows_one_by_one_are_the_rows_together(rows):
    given = [{"messages": ASK, "n": n} for n in range(3)]
    path = rows(*given)
    assert [fields for fields, _ in each_row(path)] == given
    assert [example for _, example in each_row(path)] == read_rows(path)
    seen = []
    with pytest.raises(InputError, match="rows.jsonl:2: messages"):
        seen += (example.columns["n"] for _, example in each_row(rows(given[0], {}, given[2])))
    one = each_row(rows(*given))
    assert next(one)[1].columns["n"] == 0  # without reading on
