"""Workers on Ray: what they write is what one process writes, also when one of them, or the first process, is killed.

The tests start a cluster of two workers by `ray start`, as one does on many machines; one test lets elocute start its
own.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from elocute.errors import InputError, RunError
from elocute.pipelines import hire
from elocute.pipelines.hire import AHEAD, MOST_DEATHS, hired
from elocute.pipelines.label.run import Labeller
from elocute.pipelines.sample import CandidateSampler
from elocute.pipelines.score import CandidateScorer
from elocute.prosody.schema import load_schema
from elocute.recipe import load_recipe

RECIPE = "recipes/starter/wavalign.yaml"
SMALL = ["rollout.max_new_tokens=24", "rollout.prompts_per_step=2"]
on_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is missing: make ray")


@pytest.fixture(autouse=True)
def one_thread():
    """As a worker has: another number of threads may change the last digit of a float."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of this machine's, in a folder with a short name: it holds sockets."""
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"
    own = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "300000"}
    own["PYTHONPATH"] = os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])
    own |= {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "300"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nobody else is to run code here
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    words = ["--head", "--num-cpus=2", "--num-gpus=0", "--port=0", "--include-dashboard=false"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        raylet = subprocess.Popen(
            [*ray, "start", *words, "--object-store-memory=100000000", "--block"], stdout=subprocess.DEVNULL
        )
        address = folder / "ray/ray_current_cluster"
        while not address.exists():
            assert raylet.poll() is None
            time.sleep(0.2)
        patch.setenv("RAY_ADDRESS", address.read_text())
        yield
        raylet.terminate()
        raylet.wait()
        shutil.rmtree(folder, ignore_errors=True)


class Tool:
    """Doubles numbers; at -1 its process dies, at -2 only the first time, in that folder."""

    def __init__(self, folder: str):
        if folder == "nowhere":
            raise InputError("no such folder")
        if folder == "slow":
            time.sleep(3)
        self.folder = folder

    def double(self, number: int) -> tuple[int, int]:
        if number == -1 or (number == -2 and not os.path.exists(f"{self.folder}/died")):
            open(f"{self.folder}/died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -3:
            raise InputError("row 3: bad")
        if number == -4:
            return 1 // 0
        return 2 * number, os.getpid()


@pytest.fixture
def crew(cluster, tmp_path):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with hired(Tool, (str(tmp_path),), 2) as crew:
        yield crew


@on_ray
def test_portions_come_back_in_order_whoever_dies(crew):
    numbers = [*range(20), -2, *range(20, 60)]
    made = list(crew("double", iter(numbers)))
    assert [double for double, _ in made] == [2 * number for number in numbers]
    assert os.getpid() not in {process for _, process in made} and len({process for _, process in made}) > 1
    assert [double for double, _ in crew("double", [1, 2])] == [2, 4]  # and it goes on


@on_ray
def test_what_is_wrong_comes_out_as_it_is(crew, cluster):
    made = crew("double", [0, 1, -3, 4])
    assert [next(made)[0], next(made)[0]] == [0, 2]
    with pytest.raises(InputError, match="^row 3: bad$"):
        next(made)


@on_ray
def test_a_defect_ends_the_work_with_its_traceback(crew):
    with pytest.raises(ZeroDivisionError, match="return 1 // 0"):
        list(crew("double", [-4]))


@on_ray
def test_rows_that_kill_whoever_has_them_end_the_work(crew):
    with pytest.raises(RunError, match=f"^{MOST_DEATHS} workers died over the same rows: .+$"):
        list(crew("double", [1, -1, 2]))


@on_ray
def test_what_cannot_be_opened_is_said_in_one_line(cluster, crew):
    import ray

    ray.shutdown()
    with pytest.raises(InputError, match="^no such folder$"), hired(Tool, ("nowhere",), 1) as crew:
        list(crew("double", [1]))


@on_ray
def test_who_waits_for_a_worker_is_told(cluster, crew, monkeypatch, caplog):
    import ray

    ray.shutdown()
    monkeypatch.setattr(hire, "PATIENCE", 0.5)
    with hired(Tool, ("slow",), 1) as crew:
        assert [double for double, _ in crew("double", [1])] == [2]
    assert "Ray: still no worker; each waits for a CPU" in caplog.text


@on_ray
def test_no_more_rows_are_read_than_are_under_way(crew):
    given = 0

    def numbers():
        nonlocal given
        while given < 100:
            given += 1
            yield given

    for done, _ in enumerate(crew("double", numbers())):
        assert given <= done + AHEAD * 2 + 1
    assert given == 100


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Twelve prompts, each third one spoken."""
    sound, lines = str(Path("starter/audio/heldout-sum-0000.question.wav").resolve()), []
    for i in range(12):
        asked = {"content": "<|audio|>"} if i % 3 == 0 else {"content": f"number {i}"}
        line = {
            "id": f"q{i}",
            "messages": [{"role": "user", **asked}],
            "audios": [sound] * (i % 3 == 0),
            "answer": "six",
        }
        lines.append(json.dumps(line) + "\n")
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(lines))
    return file


@pytest.fixture
def sampler(speaking_folder, rows, tmp_path):
    def make(out: str, workers: int) -> CandidateSampler:
        recipe = load_recipe(RECIPE, [f"model={speaking_folder}", f"data.cache={tmp_path / out}-cache", *SMALL])
        return CandidateSampler(recipe, rows, tmp_path / out, n=3, workers=workers)

    return make


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def workers_of_this_test() -> list[int]:
    """The processes of this cluster's workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                mine = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode() in (process / "environ").read_bytes()
                found += [int(process.name)] * mine
        except OSError:
            pass  # it has ended
    return found


@on_ray
def test_a_worker_killed_while_it_samples_leaves_no_trace(sampler, cluster, tmp_path):
    sampler("local", 0).run()
    killed = []

    def kill_one(stage: str, done: int, of: int, values: dict) -> None:
        if stage == "prompts" and done >= 2 and not killed:
            killed.append(workers_of_this_test()[0])
            os.kill(killed[0], signal.SIGKILL)

    summary = sampler("ray", 2).run(progress=kill_one)
    assert killed and summary["prompts"] == 12
    assert tree(tmp_path / "ray") == tree(tmp_path / "local") and len(tree(tmp_path / "ray")) > 12
    assert tree(tmp_path / "ray-cache") == tree(tmp_path / "local-cache") != {}


@on_ray
def test_the_first_process_killed_goes_on_with_either_engine(sampler, cluster, speaking_folder, rows, tmp_path):
    sampler("local", 0).run()
    job = sampler("ray", 2)
    given = [f"model={speaking_folder}", f"data.cache={tmp_path / 'ray-cache'}", *SMALL]
    words = [*given, "--data", rows, "-n", 3, "-o", job.out]
    command = [sys.executable, "-m", "elocute.cli", "sample", RECIPE, *words, "--engine", "ray", "--workers", "2"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    lines = job.out / "candidates.jsonl"
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 2 <= lines.read_bytes().count(b"\n") < 12
    sampler("ray", 0 if "q7" in lines.read_text() else 2).run(resume=True)
    assert tree(job.out) == tree(tmp_path / "local")


REWARD = """
import os, signal

def length(completions, **columns):
    if any("{fatal}" in str(row) for row in columns["id"]) and not os.path.exists("{flag}"):
        open("{flag}", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(min(len(str(one)), 100)) / 100 for one in completions]
"""


@on_ray
def test_a_worker_killed_while_it_judges_leaves_no_trace(sampler, cluster, tmp_path, rows):
    sampler("given", 0).run()
    flag = tmp_path / "died"
    (tmp_path / "reward.py").write_text(REWARD.format(fatal="q5", flag=flag).replace('columns["id"]', 'columns["key"]'))
    candidates, lines = tmp_path / "given/candidates.jsonl", []
    for line in candidates.read_text().splitlines():
        lines.append(json.dumps(json.loads(line) | {"key": json.loads(line)["id"]}) + "\n")
    candidates.write_text("".join(lines))
    reward = f"{{kind: function, name: length, function: {tmp_path / 'reward.py'}:length, low: 0, high: 1}}"
    recipe = load_recipe(RECIPE, [*SMALL, "rollout.group_size=2", f"rewards=[{reward}]"])
    with CandidateScorer(recipe, candidates, tmp_path / "ray.jsonl", workers=2) as job:
        summary = job.run()
    assert flag.exists() and summary["prompts"] == 12
    with CandidateScorer(recipe, candidates, tmp_path / "local.jsonl") as job:
        job.run()
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


@on_ray
def test_labels_are_the_same_on_a_cluster_that_elocute_starts_itself(recorded, tmp_path, monkeypatch, cluster):
    monkeypatch.delenv("RAY_ADDRESS")
    for name, workers in (("local", 0), ("ray", 1)):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out.jsonl"
        Labeller(recorded, out, load_schema(), ["rule", "audio"], workers=workers).run()
    assert (tmp_path / "ray/out.jsonl").read_bytes() == (tmp_path / "local/out.jsonl").read_bytes()


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^--engine ray needs Ray: pip install 'elocute\[ray\]'$"), hired(Tool, (), 1):
        pass


@pytest.mark.parametrize("words", [["--engine", "ray"], ["--workers", 2]])
def test_the_engine_and_its_workers_belong_together(type_command, texts, words):
    status, _, said = type_command("label", "--input", texts("a."), "--output", "b.jsonl", "--from", "rule", *words)
    assert (status, said) == (2, "--engine ray needs --workers N, and --workers needs --engine ray\n")
