"""Files of pairs: any layout of the input, kills, restarts, and what may not change the result."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.errors import InputError, RunError
from elocute.pipelines.pairs import split
from elocute.pipelines.pairs.build import build_pairs, look_at_pairs
from elocute.pipelines.pairs.card import card_path
from elocute.pipelines.pairs.choose import Best
from elocute.pipelines.pairs.split import Source, blocks, raw_rows
from tests.pipelines.pair_files import as_lines, built, options, some_rows

strings = st.text(st.sampled_from('{}[]",\\ \n:aü'), max_size=8)
values = st.recursive(
    strings | st.integers() | st.none(), lambda v: st.lists(v, max_size=3) | st.dictionaries(strings, v)
)


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(strings, values, max_size=3), min_size=1, max_size=8),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.integers(1, 60),
)
def test_parts_and_blocks_hold_each_row_once_in_any_layout(rows, indent, array, size):
    text = json.dumps(rows, indent=indent) if array else "\n \r\n".join(json.dumps(one) for one in rows)
    content = b"\xef\xbb\xbf \n"[: 5 if array else 3] + text.encode()
    with (
        patch.object(split, "WINDOW", size),
        patch.object(split, "BLOCK", 2 * size),
        tempfile.NamedTemporaryFile() as file,
    ):
        file.write(content)
        file.flush()
        found = []
        for span in Source(file.name).spans(3 * size):
            for block, no_comma in blocks(file, span):
                assert not no_comma
                found += raw_rows(block, array)
    assert [json.loads(raw) for raw in found] == rows


@pytest.mark.parametrize("indent", [None, 0, 1])
def test_an_array_gives_the_pairs_that_its_lines_give(folders, indent):
    rows = some_rows(60)
    rows[7]["output"]["1"]["output-text"] = 'he said: "}, {" \\'
    rows[9]["new"] = {"a": [1.50, {"}": "{"}]}
    lines, array = built(folders("lines"), as_lines(rows)), built(folders("array"), json.dumps(rows, indent=indent))
    assert lines == array if indent is None else len(array) < len(lines)
    pairs = [json.loads(line) for line in lines.splitlines()]
    assert pairs == [json.loads(line) for line in array.splitlines()]
    assert len(pairs) == 60 and pairs[9]["new"] == rows[9]["new"]


def test_workers_and_the_size_of_parts_do_not_matter(folders):
    content = as_lines(some_rows(200))
    for told in ({}, {"top_k": 50, "max_samples": 20, "seed": 3}):
        name = str(len(told))
        one = built(folders(f"one{name}"), content, **told)
        assert one == built(folders(f"some{name}"), content, workers=3, **told)
        assert one == built(folders(f"large{name}"), content, part_bytes=10**6, **told)


def test_what_is_kept_does_not_depend_on_the_order(folders):
    rows = some_rows(120)
    mixed = [{**one, "output": dict(random.Random(1).sample(list(one["output"].items()), 4))} for one in rows]
    random.Random(0).shuffle(mixed)
    told = {"top_k": 40, "max_samples": 15, "pairs_per_prompt": 2}
    lines = [
        sorted(built(folders(name), as_lines(some), **told).splitlines()) for name, some in (("a", rows), ("b", mixed))
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 15
    assert sum(json.loads(line)["weight"] for line in lines[0]) / 15 == pytest.approx(1, abs=1e-5)
    other = built(folders("seed"), as_lines(rows), **told, seed=1)
    assert sorted(other.splitlines()) != lines[0]


def test_top_k_are_the_widest(folders):
    content = as_lines(some_rows(100))
    gaps = sorted((json.loads(line)["score_gap"] for line in built(folders("all"), content).splitlines()), reverse=True)
    kept = [json.loads(line)["score_gap"] for line in built(folders("top"), content, top_k=30).splitlines()]
    assert sorted(kept, reverse=True) == gaps[:30]


def test_the_best_of_a_stream_even_of_equals():
    values = np.random.default_rng(0).integers(0, 50, 300_000)
    best = Best(1000)
    for some in np.array_split(values, 7):
        best.look((some, np.zeros(len(some))))
    best.close()
    kept = np.concatenate([some[best.keeps((some, np.zeros(len(some))))] for some in np.array_split(values, 7)])
    assert sorted(kept) == sorted(values)[:1000]
    few = Best(10)
    few.look((values[:3],))
    few.close()
    assert few.keeps((values[:3],)).all()


KILLED = """
import sys
from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.options import PairOptions
build_pairs(PairOptions(input=sys.argv[1], output=sys.argv[2], max_samples=900), part_bytes=3000, workers=2)
"""


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes_and_leaves_no_process(folders):
    folder, whole = folders("killed"), folders("whole")
    content = as_lines(some_rows(2000))
    (folder / "c.jsonl").write_text(content)
    command = [sys.executable, "-c", KILLED, str(folder / "c.jsonl"), str(folder / "pairs.jsonl")]
    parts = folder / ".pairs.jsonl.unfinished"
    for wanted in (3, 40, 120):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.json"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(children) == 2 and not psutil.wait_procs(children, timeout=60)[1]
        assert not (folder / "pairs.jsonl").exists()
    before = {path.name: path.stat().st_ino for path in parts.glob("*.json")}
    again = subprocess.Popen(command)
    assert again.wait(timeout=300) == 0 and len(before) > 100
    assert (folder / "pairs.jsonl").read_bytes() == built(whole, content, part_bytes=3000, max_samples=900)
    assert not parts.exists()


def test_what_is_done_of_a_part_is_not_done_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(stage, done, of, values):
        if done > 1:
            raise Killed

    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(8000)))
    with pytest.raises(Killed):
        build_pairs(options(tmp_path), progress=kill, part_bytes=200_000)
    folder = tmp_path / ".pairs.jsonl.unfinished"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 3 < len(made) and not (tmp_path / "pairs.jsonl").exists()
    seen = {}

    def look(stage, done, of, values):
        seen.update({path: path.stat().st_mtime_ns for path in made})

    build_pairs(options(tmp_path), progress=look, part_bytes=200_000)
    assert seen == made


def test_other_options_start_anew(tmp_path):
    content = as_lines(some_rows(50))
    folder = tmp_path / ".pairs.jsonl.unfinished"
    folder.mkdir()
    (folder / "000000.json").write_text("{}")
    (folder / "origin.json").write_text("{}")
    assert len(built(tmp_path, content).splitlines()) == 50


def test_done_is_done_and_what_others_made_stays(tmp_path):
    content = as_lines(some_rows(20))
    lines = built(tmp_path, content)
    date = (tmp_path / "pairs.jsonl").stat().st_mtime_ns
    card = build_pairs(options(tmp_path))
    assert card["pairs"]["written"] == 20 and (tmp_path / "pairs.jsonl").stat().st_mtime_ns == date
    with pytest.raises(InputError, match="pairs.jsonl: there already, and not made by this command"):
        build_pairs(options(tmp_path, min_score_gap=2.0))
    (tmp_path / "pairs.jsonl").unlink()  # as when it was killed before the output appeared
    build_pairs(options(tmp_path))
    assert (tmp_path / "pairs.jsonl").read_bytes() == lines
    for name in ("theirs.jsonl", "theirs2.card.md", "theirs3.card.json"):
        (tmp_path / name).write_text("[]")
        with pytest.raises(InputError, match="there already"):
            build_pairs(options(tmp_path, output=str(tmp_path / f"{name.split('.')[0]}.jsonl")))
        assert (tmp_path / name).read_text() == "[]"


def test_two_at_once_do_not_mix(tmp_path):
    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(5)))
    folder = tmp_path / ".pairs.jsonl.unfinished"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="pairs.jsonl: another process is writing it"):
            build_pairs(options(tmp_path))
    assert build_pairs(options(tmp_path))["pairs"]["written"] == 5


def test_a_worker_that_dies_is_said_and_its_work_done_again(tmp_path):
    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(300)))

    def kill(*_):
        for process in psutil.Process().children():
            process.kill()

    with pytest.raises(RunError, match="a worker process ended early"):
        build_pairs(options(tmp_path), progress=kill, part_bytes=2000, workers=2)
    assert build_pairs(options(tmp_path), part_bytes=2000, workers=2)["rows"]["read"] == 300
    (tmp_path / "whole").mkdir()
    assert (tmp_path / "pairs.jsonl").read_bytes() == built(tmp_path / "whole", as_lines(some_rows(300)))


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(5)))
    output = tmp_path / "file" / "pairs.jsonl"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        build_pairs(options(tmp_path, output=str(output)))


def test_a_look_writes_nothing(tmp_path):
    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(30)))
    made = look_at_pairs(options(tmp_path))
    assert (made.rows, made.pairs) == (30, 30)
    assert os.listdir(tmp_path) == ["c.jsonl"]


def test_the_card_says_what_the_pairs_are(tmp_path):
    rows = some_rows(80)
    rows[0]["question_text"] = "a | b <b>*loud*</b>\n" + "x" * 1000
    for one in rows:
        one["audios"], one["messages"] = ["my question.wav"], [{"role": "user", "content": "<|audio|>"}]
    lines = [json.loads(line) for line in built(tmp_path, as_lines(rows), min_score_gap=4.0).splitlines()]
    card = json.loads(card_path(tmp_path / "pairs.jsonl", "json").read_text())
    gaps = [line["score_gap"] for line in lines]
    assert card["rows"]["dropped"]["gap below 4"]["rows"] == 80 - len(lines) and card["pairs"]["written"] == len(lines)
    assert card["score_gap"] == pytest.approx(
        {"mean": np.mean(gaps), "std": np.std(gaps), "min": min(gaps), "max": max(gaps)}
    )
    assert card["weight"]["mean"] == pytest.approx(1)
    assert sum(one["pairs"] for one in card["histogram"]) == len(lines)
    for one in card["histogram"]:
        assert one["pairs"] == sum(one["from"] <= gap < one["below"] for gap in gaps)
    ids = [one["id"] for one in card["examples"]]
    assert len(ids) == len(set(ids)) == 9 and set(ids) <= {line["id"] for line in lines}
    assert card["examples"][0]["score_gap"] == max(gaps) and card["examples"][3]["score_gap"] == min(gaps)
    page = card_path(tmp_path / "pairs.jsonl", "md").read_text()
    assert f"| **pairs written** | {len(lines)} |" in page and "█" in page
    assert "](my%20question.wav)" in page and "<b>" not in page and "x" * 400 not in page
