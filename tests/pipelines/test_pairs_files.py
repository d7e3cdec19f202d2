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
from elocute.pipelines.pairs import source
from elocute.pipelines.pairs.build import build_pairs, look_at_pairs
from elocute.pipelines.pairs.card import card_path
from elocute.pipelines.pairs.merge import DTYPE, kept
from elocute.pipelines.pairs.source import Source, raw_rows, read_span
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
def test_parts_hold_each_row_once_in_any_layout_and_rows_are_found_again(rows, indent, array, size):
    text = json.dumps(rows, indent=indent) if array else "\n \r\n".join(json.dumps(one) for one in rows)
    content = b"\xef\xbb\xbf \n"[: 5 if array else 3] + text.encode()
    with patch.object(source, "WINDOW", size), tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        found, read = [], Source(file.name)
        for span in read.spans(3 * size):
            found += [raw for _, raw in raw_rows(read_span(file, span, array), array)]
        places = read.places(range(0, len(rows), 2))
    assert [json.loads(raw) for raw in found] == rows
    for number, (where, raw) in places.items():
        line = int(where.removeprefix(f"{file.name}:").split(":")[0])
        assert raw == found[number] and raw.split(b"\n")[0] in content.split(b"\n")[line - 1]
    assert sorted(places) == list(range(0, len(rows), 2))


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


@pytest.mark.parametrize(("indent", "workers"), [(None, 1), (0, 2)])
def test_what_looks_like_the_end_of_a_row_is_none(folders, indent, workers):
    rows = some_rows(120)
    for one in rows[40::7]:  # longer than a part
        one["new"] = [{"messages": one["id"]}] * 200
    content, folder = json.dumps(rows, indent=indent), folders("array")
    array = built(folder, content, workers=workers)
    assert [json.loads(line) for line in array.splitlines()] == [
        json.loads(line) for line in built(folders("lines"), as_lines(rows)).splitlines()
    ]
    spans = list(Source(str(folder / "c.jsonl")).guessed_spans(2000))
    whole = [_is_json(content[span.start : span.end]) for span in spans]
    assert all(whole[:5]) and not all(whole)  # else this tests nothing


def _is_json(rows):
    try:
        return bool(json.loads(f"[{rows.lstrip(', ')}]"))
    except ValueError:
        return False


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


def test_top_k_of_many_equals_are_those_that_the_seed_draws(tmp_path):
    draw, records = np.random.default_rng(0), np.zeros(100_000, dtype=DTYPE)
    records["margin"], records["gap"] = draw.integers(0, 5, (2, len(records)))
    records["draw"] = draw.integers(0, 30_000, len(records))
    order = sorted(
        range(len(records)), key=lambda i: [-records[i]["margin"], -records[i]["gap"], records[i]["draw"], i]
    )
    keep, dropped = kept(records, options(tmp_path, top_k=7000))
    assert np.flatnonzero(keep).tolist() == sorted(order[:7000]) and dropped == {"beyond --top-k": 93_000}
    keep, dropped = kept(records, options(tmp_path, top_k=7000, max_samples=1000))
    drawn = sorted(sorted(order[:7000]), key=lambda i: records[i]["draw"])[:1000]
    assert np.flatnonzero(keep).tolist() == sorted(drawn) and dropped["not drawn for --max-samples"] == 6000
    assert kept(records, options(tmp_path, top_k=10**6))[0].all()


KILLED = """
import sys, time
from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.options import PairOptions
options = PairOptions(input=sys.argv[1], output=sys.argv[2], max_samples=900)
build_pairs(options, part_bytes=3000, workers=2, progress=lambda *_: time.sleep(0.002))  # long enough to be killed
"""


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes_and_leaves_no_process(folders):
    folder, whole = folders("killed"), folders("whole")
    content = as_lines(some_rows(1200))
    (folder / "c.jsonl").write_text(content)
    command = [sys.executable, "-c", KILLED, str(folder / "c.jsonl"), str(folder / "pairs.jsonl")]
    journal = folder / ".pairs.jsonl.unfinished" / "parts.jsonl"
    done = b""
    for wanted in (3, 40, 120):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(children) == 2 and not psutil.wait_procs(children, timeout=60)[1]
        assert not (folder / "pairs.jsonl").exists()
        before, done = done, journal.read_bytes().rpartition(b"\n")[0]
        assert done.startswith(before)  # nothing that was done is done again
    again = subprocess.Popen(command)
    assert again.wait(timeout=300) == 0
    assert (folder / "pairs.jsonl").read_bytes() == built(whole, content, part_bytes=3000, max_samples=900)
    assert not journal.parent.exists()


class Killed(BaseException):
    pass


def kill_at(bytes_done):
    def progress(stage, done, of, values):
        if done >= bytes_done:
            raise Killed

    return progress


def test_what_is_done_of_a_part_is_not_done_again(folders):
    folder, content = folders("killed"), as_lines(some_rows(8000))
    (folder / "c.jsonl").write_text(content)
    with pytest.raises(Killed):
        build_pairs(options(folder), progress=kill_at(2), part_bytes=200_000)
    journal, lines = (folder / ".pairs.jsonl.unfinished" / name for name in ("parts.jsonl", f"{os.getpid()}.jsonl"))
    made = journal.read_bytes()
    assert made.count(b"\n") > 3 and not (folder / "pairs.jsonl").exists()
    for path in (journal, lines):  # as a kill in the middle of a part leaves them
        with path.open("ab") as file:
            file.write(b'{"half of a')
    seen = []
    build_pairs(options(folder), progress=lambda *_: seen.append(journal.read_bytes()), part_bytes=200_000)
    parts = len(list(Source(str(folder / "c.jsonl")).spans(200_000)))
    assert len(seen) == parts - made.count(b"\n") and all(journal.startswith(made) for journal in seen)
    assert (folder / "pairs.jsonl").read_bytes() == built(folders("whole"), content)


def test_other_options_start_anew(folders):
    killed, content = folders("killed"), as_lines(some_rows(8000))
    (killed / "c.jsonl").write_text(content)
    with pytest.raises(Killed):
        build_pairs(options(killed), progress=kill_at(1), part_bytes=200_000)
    assert (killed / ".pairs.jsonl.unfinished" / "parts.jsonl").exists()
    other = built(folders("whole"), content, part_bytes=200_000, min_score_gap=3.0)
    assert built(killed, content, part_bytes=200_000, min_score_gap=3.0) == other


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
