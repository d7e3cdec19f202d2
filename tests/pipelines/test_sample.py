"""Candidates of a tiny random model: what stands in them, and that a killed run goes on to the same bytes."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.pipelines.sample import CandidateSampler
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups, seed_of
from elocute.speech.codec import StarterCodec
from tests.models.adapter_checks import comes_back, said

RECIPE = "recipes/starter/wavalign.yaml"
SMALL = ["rollout.max_new_tokens=24", "rollout.prompts_per_step=2"]
IDS = ["q/../1", "zwölf", None, "q 4", "x" * 300]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "sounds").mkdir()
    question = folder / "sounds/question.wav"
    shutil.copy("starter/audio/heldout-sum-0000.question.wav", question)
    lines = [{"id": id, "messages": [{"role": "user", "content": f"number {i}"}], "n": i} for i, id in enumerate(IDS)]
    lines[0] |= {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["sounds/question.wav"]}
    lines[1] |= {"rejected_audio": str(question), "sft_target_audio": "sounds/../sounds/question.wav"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


@pytest.fixture
def sampler(speaking_folder, rows, tmp_path):
    def make(out="out", *overrides: str, data: Path = rows, **options) -> CandidateSampler:
        given = [f"model={speaking_folder}", f"data.cache={tmp_path / 'cache'}", *SMALL, *overrides]
        return CandidateSampler(load_recipe(RECIPE, given), data, tmp_path / out, **{"n": 3} | options)

    return make


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_line_is_its_row_and_n_answers(sampler, speaking_lm, rows):
    told = []
    job = sampler()
    summary = job.run(progress=lambda *news: told.append(news))
    lines, given = read(job.out), read_rows(rows)
    assert [line["id"] for line in lines] == [example.id for example in given]
    assert [line["n"] for line in lines] == [0, 1, 2, 3, 4]
    candidates = [c for line in lines for c in line["output"].values()]
    for line in lines:
        assert line["units_codec"] == speaking_lm.codec.digest and list(line["output"]) == ["0", "1", "2"]
        assert [c["seed"] for c in line["output"].values()] == [seed_of(1, "sample", line["id"], k) for k in range(3)]
    for candidate in candidates:
        if candidate["broken"] is None:
            waveform, rate = soundfile.read(job.out / candidate["output-audio"])
            assert soundfile.info(job.out / candidate["output-audio"]).subtype == "PCM_16"
            np.testing.assert_allclose(waveform, speaking_lm.codec.decode(candidate["output-units"]), atol=1 / 32_000)
            assert candidate["seconds"] == len(waveform) / rate
    broken = [c for c in candidates if c["broken"]]
    assert 0 < len(broken) < 15 and "no end" in " ".join(c["broken"] for c in broken)
    assert not any("cut" in c for c in candidates)  # an answer that must end and does not is broken instead
    assert len({tuple(c["output-units"]) for c in candidates}) > 10
    assert (summary["prompts"], summary["answers"], summary["broken"]) == (5, 15, len(broken))
    assert summary["seconds"] == pytest.approx(sum(c["seconds"] for c in candidates)) and summary["tokens_per_s"] > 0
    assert [(stage, done) for stage, done, *_ in told[-4:]] == [("prompts", done) for done in (0, 2, 4, 5)]
    assert told[-1][3]["tokens_per_s"] > 0


def test_answers_are_learnt_token_by_token(speaking_lm, rows, tmp_path):
    """Also a text that its tokenizer would cut otherwise."""
    assert (letters := [*map(speaking_lm.tokenizer.encode, "four")]) != [speaking_lm.tokenizer.encode("four")]
    prompt = speaking_lm.encode_prompt(read_rows(rows)[0], EncodedAudio(speaking_lm.codec))
    layout = speaking_lm.layout
    block = [speaking_lm.codec.shape.codebook, 0, 1, 2, 3]
    odd = layout.assemble([id for ids in letters for id in ids], block * 2).ids
    group = sample_groups(speaking_lm, [prompt], [range(6)], Sampling(24))[0]
    assert comes_back(speaking_lm, rows, [*group, said(speaking_lm, odd)], tmp_path) > 1


def test_paths_lead_to_the_same_audio_from_the_new_folder(sampler, rows):
    job = sampler("deep/er/out", n=1)
    job.run()
    first, second, *_ = read_rows(job.out / "candidates.jsonl")
    question = rows.parent / "sounds/question.wav"
    assert first.audios[0].path.samefile(question) and second.target_audio.path.samefile(question)
    assert not Path(read(job.out)[0]["audios"][0]).is_absolute()
    assert read(job.out)[1]["rejected_audio"] == str(question)
    wavs = {path.name for path in (job.out / "audio").iterdir()}
    assert wavs == {
        Path(c["0"]["output-audio"]).name for line in read(job.out) if (c := line["output"])
    }  # all in audio/


def test_an_answer_depends_on_its_seed_alone(sampler, rows, tmp_path):
    """Not on the batch, the order of the rows, or how many answers there are."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines = [
        {key: line[key] for key in ("id", "messages", "n")} for line in lines if line["id"] and "audios" not in line
    ]
    reverse = tmp_path / "reverse.jsonl"
    reverse.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    sampler("one").run()
    other = sampler("other", "rollout.prompts_per_step=1", data=reverse, n=2)
    other.run()
    found = {line["id"]: line["output"] for line in read(tmp_path / "one")}
    again = {line["id"]: line["output"] for line in read(other.out)}
    assert list(again) == ["x" * 300, "q 4", "zwölf"]
    assert again == {id: {key: found[id][key] for key in ("0", "1")} for id in again}
    sampler("seed", "seed=7").run()
    assert [line["output"] for line in read(tmp_path / "seed")] != [line["output"] for line in read(tmp_path / "one")]


@pytest.fixture
def finished(sampler):
    job = sampler("whole")
    job.run()
    return job.out


@pytest.mark.parametrize("part", [0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
def test_what_a_kill_leaves_goes_on_to_the_same_bytes(sampler, finished, tmp_path, part):
    """Cut anywhere; a half-written WAV, one that no line names yet, and what an atomic write leaves behind."""
    expected, out = tree(finished), tmp_path / "out"
    shutil.copytree(finished, out)
    content = expected["candidates.jsonl"]
    (out / "candidates.jsonl").write_bytes(content[: int(len(content) * part)])
    named = {c["output-audio"] for line in content[: int(len(content) * part)].splitlines() if line.endswith(b"}}}")
             for c in json.loads(line)["output"].values()}  # fmt: skip
    later = [name for name in sorted(expected) if name.startswith("audio/") and name not in named]
    for name in later[1:]:
        (out / name).unlink()
    if later:
        (out / later[0]).write_bytes(expected[later[0]][:50])
    (out / "audio/.x-0.wav.123-0a1b2c3d").write_bytes(b"RIFF")
    summary = sampler(data=sampler().data).run(resume=True)
    assert tree(out) == expected and summary["prompts"] == 5


def test_defect_align_8_running_again_duplicates_nothing(sampler, finished, tmp_path):
    """Neither candidates nor encoded audio."""
    before, encoded = tree(finished), tree(tmp_path / "cache")
    assert encoded and len({line["id"] for line in read(finished)}) == len(read(finished)) == 5
    for resume in (True, False, True):
        with contextlib.nullcontext() if resume else pytest.raises(InputError, match="there already"):
            sampler("whole").run(resume=resume)
        assert tree(finished) == before
    sampler("elsewhere").run()
    assert tree(tmp_path / "cache") == encoded


@pytest.mark.parametrize(
    ("part", "row", "what"), [("encode", 1, "audios: .*question.wav"), ("decode", 3, "its answers")]
)
def test_defect_align_8_an_exception_is_no_skipped_line(sampler, finished, rows, monkeypatch, part, row, what):
    expected, calls = tree(finished), []

    def failing(self, *given):
        calls.append(given)
        if part == "encode" or len(calls) > 3 * (row - 1):  # three answers a row
            raise ValueError("a bug")
        return working(self, *given)

    working = getattr(StarterCodec, part)
    with monkeypatch.context() as patch:
        patch.setattr(StarterCodec, part, failing)
        with pytest.raises(ValueError, match="a bug") as caught:
            sampler("out", f"data.cache={finished.with_name('new')}").run()
    assert re.fullmatch(rf"{rows}:{row}: {what}", caught.value.__notes__[0])
    out = sampler("out").out
    assert not out.exists() if part == "encode" else len(read(out)) == 2  # the batch before it
    sampler("out").run(resume=part == "decode")
    assert tree(out) == expected


def test_defect_align_8_the_command_fails_and_names_the_row(speaking_folder, rows, tmp_path):
    broken = "from elocute.speech.codec import StarterCodec as C; C.encode = lambda *_: 1 // 0; "
    given = [f"model={speaking_folder}", f"data.cache={tmp_path / 'cache'}"]
    words = [RECIPE, *given, "--data", rows, "-o", tmp_path / "out"]
    command = [sys.executable, "-c", broken + "from elocute.cli import main; main()", "sample", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert re.search(rf"ZeroDivisionError: .*\n{rows}:1: audios: .*question.wav\n$", done.stderr)


def test_a_line_that_was_never_written_here_is_not_cut_away(sampler, finished):
    file = finished / "candidates.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + "oops\n" + "".join(lines[2:]))
    with pytest.raises(InputError, match="candidates.jsonl:2: not a line that was written here"):
        sampler("whole").run(resume=True)
    assert file.read_text().count("\n") == 5


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        (["seed=5"], {}, "seed: the work was started with 1, now it is 5"),
        (["rollout.temperature=0.5"], {}, "rollout: the work was started with .*0.5"),
        ([], {"n": 4}, "n: the work was started with 3, now it is 4"),
        ([], {"shard": "1/2"}, "shard: the work was started with '1/1', now it is '1/2'"),
    ],
)
def test_only_the_same_work_goes_on(sampler, finished, overrides, options, said):
    with pytest.raises(InputError, match=f"candidates.jsonl.origin.json: {said}"):
        sampler("whole", *overrides, **options).check(resume=True)
    with pytest.raises(InputError, match="candidates.jsonl: there already; --resume goes on"):
        sampler("whole").check(resume=False)


def test_changed_rows_or_weights_are_other_work(sampler, rows, speaking_folder, tmp_path):
    data, weights = tmp_path / "rows.jsonl", tmp_path / "model"
    data.write_text('{"messages": [{"role": "user", "content": "four"}]}\n')
    shutil.copytree(speaking_folder, weights)
    job = sampler("out", f"model={weights}", data=data)
    job.run()
    job.check(resume=True)
    data.write_text('{"messages": [{"role": "user", "content": "five"}]}\n')
    with pytest.raises(InputError, match="data: the work was started with"):
        job.check(resume=True)
    data.write_text('{"messages": [{"role": "user", "content": "four"}]}\n')
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(InputError, match="model: the work was started with"):
        job.check(resume=True)


def test_a_folder_with_something_else_in_it_is_refused(sampler, tmp_path):
    (tmp_path / "out").mkdir()
    sampler().check(resume=False)
    (tmp_path / "out/.candidates.jsonl.origin.json.77-00ff00ff").write_text("killed at the very beginning")
    (tmp_path / "out/candidates.jsonl").touch()
    sampler().check(resume=True)
    (tmp_path / "out/notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match="expected a new folder or an empty one, it holds notes.txt"):
            sampler().check(resume=resume)
    (tmp_path / "out/candidates.jsonl").write_text("mine")
    with pytest.raises(InputError, match="candidates.jsonl: not made by elocute sample"):
        sampler().check(resume=True)
    assert (tmp_path / "out/candidates.jsonl").read_text() == "mine"


def test_two_processes_do_not_write_one_folder(sampler, finished):
    with (finished / "candidates.jsonl").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing it"):
            sampler("whole").run(resume=True)


def test_all_bad_prompts_are_named_before_anything_is_sampled(sampler, tmp_path):
    data = tmp_path / "rows.jsonl"
    ask = {"messages": [{"role": "user", "content": "four"}]}
    units = {"sft_target_units": [1, 2], "units_codec": "other"}
    hear = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["silent.wav"]}
    soundfile.write(tmp_path / "silent.wav", np.zeros(9000), 16_000)
    data.write_text("\n".join(map(json.dumps, [ask, ask | units, hear, ask | {"output": {}}])))
    with pytest.raises(InputError) as caught:
        sampler(data=data).check(resume=False)
    assert str(caught.value) == f"{data}:4: output: the row has candidates already"
    data.write_text("\n".join(map(json.dumps, [ask, ask | units, hear])))
    with pytest.raises(InputError) as caught:
        sampler(data=data).run()
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"{data}:2: units_codec: the row's units are of codec other")
    assert said[1].startswith(f"{data}:3: audios: ") and "silent" in said[1] and len(said) == 2
    assert not (tmp_path / "out").exists()


def test_prompts_that_leave_no_room_for_an_answer_are_named_too(sampler, rows):
    job = sampler("out", "rollout.max_new_tokens=512")
    with pytest.raises(InputError) as caught:
        job.run()
    said = str(caught.value).splitlines()
    assert [line.split(": expected")[0] for line in said] == [f"{rows}:{n}: max_new_tokens" for n in range(1, 6)]
    assert not job.out.exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "-1/2"])
def test_a_shard_that_is_none(sampler, shard):
    with pytest.raises(InputError, match=f"--shard {shard}: expected I/N"):
        sampler(shard=shard).check(resume=False)


def test_shards_put_together_are_the_whole(sampler, rows):
    counts = [sampler(f"of-7-{i}", shard=f"{i}/7").check(resume=False) for i in range(1, 8)]
    assert sum(counts) == 5 and 0 in counts
    found = []
    for index in (1, 2):
        job = sampler(f"part-{index}", shard=f"{index}/2", n=1)
        job.run()
        found += [line["id"] for line in read(job.out)]
    assert found == [example.id for example in read_rows(rows)]


def test_prompts_may_be_the_first_seconds_of_their_audio(sampler, rows, tmp_path, monkeypatch):
    """The same prompt as of a question that was cut beforehand: nothing after the cut is in it."""
    prompts = []

    def watched(lm, given, seeds, sampling):
        prompts.append(given[0].tolist())
        return sample_groups(lm, given, seeds, sampling)

    monkeypatch.setattr("elocute.pipelines.sample.sample_groups", watched)
    whole, cut = rows.parent / "sounds/question.wav", tmp_path / "cut.wav"
    waveform, rate = load_audio(whole)
    soundfile.write(cut, waveform[: round(0.4 * rate)], rate, subtype="FLOAT")
    for name, audio, overrides in [
        ("cut", cut, []),
        ("part", whole, ["data.prompt_seconds=0.4"]),
        ("whole", whole, []),
    ]:
        data = tmp_path / f"{name}.jsonl"
        hear = {"id": "q", "messages": [{"role": "user", "content": "<|audio|>"}], "audios": [str(audio)]}
        data.write_text(json.dumps(hear))
        sampler(name, *overrides, data=data).run()
    assert prompts[0] == prompts[1] and len(prompts[1]) < len(prompts[2])


def test_killed_by_the_system_at_the_command_line(speaking_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    asked = [json.dumps({"messages": [{"role": "user", "content": f"{i} plus {i}"}]}) for i in range(40)]
    data.write_text("\n".join(asked))
    given = [RECIPE, f"model={speaking_folder}", *SMALL, "--data", data, "-n", 2]
    words = [sys.executable, "-m", "elocute.cli", "sample", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(out: str, *more: str) -> list[str]:
        return [str(word) for word in (*words, "-o", tmp_path / out, *more)]

    dry = subprocess.run(command("killed", "--dry-run", "--json"), capture_output=True, text=True, env=environment)
    assert dry.returncode == 0 and json.loads(dry.stdout)["prompts"] == 40 and not (tmp_path / "killed").exists()
    process = subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL, env=environment)
    file, deadline = tmp_path / "killed/candidates.jsonl", time.monotonic() + 300
    while not (file.exists() and file.stat().st_size > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.read_bytes().count(b"\n") < 40
    again = subprocess.run(command("killed"), capture_output=True, text=True, env=environment)
    assert again.returncode == 2 and "there already; --resume goes on" in again.stderr
    done = subprocess.run(command("killed", "--resume", "--json"), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompts"] == 40
    whole = subprocess.run(command("whole"), capture_output=True, text=True, env=environment)
    assert whole.returncode == 0 and "prompts 40/40" in whole.stderr and "40 prompts, 80 answers" in whole.stdout
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
