"""Two and four real processes on the CPU, started as a user starts them, do what one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.contracts import minicpm_o
from tests.rollout.vllm_stand_in import standing_in
from tests.training.preferences import preference_rows, write_rows
from tests.training.run_metrics import metrics

HANGS = 3600
"""Seconds after which what has not ended hangs: within minutes, it says only how busy the machine is."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
LAUNCHERS = {
    1: [sys.executable],
    2: TORCHRUN,
    4: [*ACCELERATE, "--config_file", "launch/ddp.yaml", "--num_processes", "4"],
    "fsdp2": [*ACCELERATE, "--config_file", "launch/fsdp2.yaml"],
    "layers": [*ACCELERATE, "--config_file", "launch/fsdp2_layers.yaml", "--num_processes", "4"],
}
"""By the number of processes, or how two or four of them divide the network."""
DEEPSPEED = {name: [*ACCELERATE, "--config_file", f"launch/{name}.yaml"] for name in ("zero2", "zero3")}
DEEPSPEED = DEEPSPEED if find_spec("deepspeed") else {}
LAUNCHERS |= DEEPSPEED
on_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="DeepSpeed is not installed: make deepspeed")


def command(folder: Path, run: str, *overrides: str, processes: int | str, recipe: str = "wavalign") -> list[str]:
    words = ["-m", "elocute.cli", "train", f"recipes/starter/{recipe}.yaml", f"model={folder / 'model'}"]
    words += [f"run_dir={folder / run}", "rollout.max_new_tokens=30", "rollout.group_size=4", "optim.micro_batch=3"]
    words += [f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:fours', low: 0, high: 1}}]"]
    words += ["steps=3", "rollout.prompts_per_step=4", "evaluation.rows=4", "optim.warmup_steps=0", *overrides]
    return [*LAUNCHERS[processes], *words]


def ended(folder: Path, run: str, *overrides: str, **options) -> subprocess.CompletedProcess:
    words = command(folder, run, *overrides, **options)
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        said = process.communicate(timeout=HANGS)
        return subprocess.CompletedProcess(words, process.returncode, *said)
    finally:
        process.terminate()  # torchrun ends its workers; nothing happens when it has ended itself


def train(folder: Path, run: str, *overrides: str, **options) -> subprocess.CompletedProcess:
    done = ended(folder, run, *overrides, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(speaking_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    speaking_lm.save(folder / "model")
    shutil.copy(Path(__file__).with_name("process_rewards.py"), folder / "reward.py")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_one(
    folder: Path, one: str, two: str, steps: int = 3, model: Path | None = None, enlarged: float = 0.0
) -> None:
    """As assert_same, of runs in which rewards had a say."""
    assert_same(folder, one, two, steps, model, enlarged)
    for line in metrics(folder / one):
        assert line["lambda"] > 0 and line["reward/std"] > 0


def assert_same(folder: Path, one: str, two: str, lines: int, model: Path | None = None, enlarged: float = 0.0) -> None:
    """Weights and metrics of both runs are the same to 1e-6, and something was learned. model: what they began with.

    enlarged: how far one weight in a thousand may be off, for Adam enlarges the rounding of gradients near 0.
    """
    ours, theirs = metrics(folder / one), metrics(folder / two)
    assert len(ours) == len(theirs) == lines
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys()
        mine = {key: value for key, value in mine.items() if value is not None}
        assert {key: yours[key] for key in mine} == pytest.approx(mine, rel=1e-6, abs=1e-6)
    first, second, before = map(weights, (folder / one / "model", folder / two / "model", model or folder / "model"))
    assert first.keys() == second.keys()
    off = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert off.max() < max(1e-6, enlarged) and (off > 1e-6).float().mean() < 0.001
    assert any((first[name] - before[name]).abs().max() > 1e-3 for name in first)


def test_two_and_four_processes_are_one(folder):
    """Of four each has one prompt a step, which asks for one label."""
    rows = preference_rows(12)
    for place, row in enumerate(rows):
        row["labels"] = {"speed": "Slow" if place % 2 else "Fast"}
    several = ["optim.updates_per_rollout=2", "objective.policy_gradient.clip=0.2"]
    fours = f"{{kind: function, function: '{folder / 'reward.py'}:fours', low: 0, high: 1}}"
    listens = "{kind: prosody, dimensions: [speed], credit: match, reference: written, weight: 0.1}"
    several += [f"data.train={write_rows(folder / 'labelled.jsonl', rows)}", f"rewards=[{fours}, {listens}]"]
    done = [train(folder, f"several-{n}", *several, processes=n) for n in LAUNCHERS]
    for n in (2, 4, "fsdp2", "layers", *DEEPSPEED):
        assert_one(folder, "several-1", f"several-{n}")
    assert all(line["alike/prosody/speed"] for line in metrics(folder / "several-4"))
    # evaluation, samples and the report are made once, by one of them
    values = [json.loads((folder / f"several-{n}/eval.json").read_text()) for n in (1, 2)]
    assert values[0].keys() == values[1].keys() >= {"before", "after"}
    assert values[0]["before"] == values[1]["before"]
    files = [sorted(p.name for p in (folder / f"several-{n}/samples").rglob("*")) for n in (1, 2)]
    assert files[0] == files[1]
    for moment in ("before", "after"):
        assert done[1].stderr.count(f"evaluate {moment} 4/4") == 1
    assert done[1].stdout.count("report: ") == 1 and (folder / "several-2/report.html").exists()


def test_two_processes_are_one_with_lora(folder):
    lora = ["lora.rank=4", "objective.policy_gradient.normaliser=token", "gradient_checkpointing=true"]
    lora += ["data.eval=null", "report=false"]
    for n in (1, 2, "fsdp2", *DEEPSPEED):
        train(folder, f"lora-{n}", *lora, processes=n)
    for n in (2, "fsdp2", *DEEPSPEED):
        assert_one(folder, "lora-1", f"lora-{n}")


@on_deepspeed
def test_deepspeed_goes_on_where_one_process_stopped_and_one_where_deepspeed_did(folder):
    given = ["checkpoint.every=1", "optim.lr=0.002", "data.eval=null", "report=false"]
    train(folder, "zero-1", *given, processes=1)
    for first, then in ((1, "zero3"), ("zero3", "zero2"), ("zero2", 1)):
        run = f"zero-{first}-{then}"
        train(folder, run, *given, processes=first)
        for made in ("checkpoints/step-3", "model"):
            shutil.rmtree(folder / run / made)
        train(folder, run, *given, "--resume", processes=then)
        assert_one(folder, "zero-1", run)


def test_two_processes_that_ask_one_server_are_one(folder):
    """A stand-in of vLLM: its answers are a function of their seeds, whoever asks. One may be done before the other."""
    served = ["rollout.vllm.max_drift=1e-4", "rollout.off_policy_steps=1", "optim.lr=0.002"]
    served += ["data.eval=null", "report=false"]
    for n in (1, 2):
        with standing_in(folder / "model") as server:
            train(folder, f"served-{n}", *served, f"rollout.vllm.url={server.url}", processes=n)
            assert [Path(weights).name for weights in server.loads] == ["step-0", "step-1", "step-2"]
    assert_one(folder, "served-1", "served-2")


def test_two_processes_are_one_a_step_ahead_and_one_goes_on_where_two_stopped(folder):
    ahead = ["rollout.off_policy_steps=1", "checkpoint.every=1", "optim.lr=0.002", "data.eval=null", "report=false"]
    for n in (1, 2):
        train(folder, f"ahead-{n}", *ahead, processes=n)
    assert_one(folder, "ahead-1", "ahead-2")
    for made in ("checkpoints/step-3", "model"):
        shutil.rmtree(folder / "ahead-2" / made)
    assert (folder / "ahead-2/checkpoints/step-2/rollouts.safetensors").exists()
    train(folder, "ahead-2", *ahead, "--resume", processes=1)
    assert_one(folder, "ahead-1", "ahead-2")


PREFER = ["optim.lr=0.001", "data.eval=null", "report=false"]


def test_two_processes_prefer_as_one_though_one_of_them_finds_no_pair(folder):
    reward = f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:first_half', low: 0, high: 1}}]"
    given = [*PREFER, reward, "objective.min_gap=0.01", "rollout.max_new_tokens=60"]
    for n in (1, 2, "layers", *DEEPSPEED):
        train(folder, f"best-{n}", *given, processes=n, recipe="dpo")
    for n in (2, "layers", *DEEPSPEED):
        assert_same(folder, "best-1", f"best-{n}", lines=3)
    kept = [line["pairs/kept"] for line in metrics(folder / "best-2")]
    assert max(kept) > 0 and all(line["pairs/small_gap"] >= 2 for line in metrics(folder / "best-2"))


def test_processes_share_the_cached_reference_and_the_held_out_pairs_even_those_that_get_none(folder):
    """Of four processes one has no held-out pair."""
    rows = [
        write_rows(folder / f"{name}.jsonl", preference_rows(count, first=first))
        for name, count, first in (("a", 5, 0), ("b", 3, 300))
    ]
    given = [*PREFER, "rewards=[]", "objective.min_gap=0", "objective.mode=offline", "objective.reference=cached"]
    given += [f"data.train={rows[0]}", f"data.dev={rows[1]}", "objective.scope=all", "lora.rank=4", "optim.lr=0.005"]
    for n in LAUNCHERS:
        cache = f"objective.reference_cache={folder / f'reference-{n}'}"
        train(folder, f"offline-{n}", *given, cache, processes=n, recipe="dpo")
    names = {path.name for path in (folder / "reference-1").iterdir()}
    assert len(names) == 2
    for n in (2, 4, "fsdp2", "layers", *DEEPSPEED):
        assert_same(folder, "offline-1", f"offline-{n}", lines=4)  # one before training
        assert {path.name for path in (folder / f"reference-{n}").iterdir()} == names
        for name in names:
            one, more = (load_file(folder / f"reference-{m}" / name)["logp"] for m in (1, n))
            torch.testing.assert_close(one, more, rtol=1e-6, atol=1e-6)


def test_two_processes_are_one_though_one_of_them_has_nothing_spoken(folder):
    """Of two rows, one a process, one is read aloud; to the other nothing is said but words."""
    model = minicpm_o.checkpoint(folder / "MiniCPM-o-2_6")
    (model / "elocute.json").write_text('{"kind": "minicpm_o", "text": "forced"}')
    turns = [{"messages": [{"role": "user", "content": content}]} for content in ("the cat sat", "hello")]
    (folder / "aloud.jsonl").write_text(json.dumps(turns[0] | {"labels": {}}) + "\n" + json.dumps(turns[1]) + "\n")
    given = [f"model={model}", f"data.train={folder / 'aloud.jsonl'}", "data.eval=null", "report=false", "steps=2"]
    given += ["rollout.prompts_per_step=2", "rollout.group_size=8", "optim.micro_batch=8", "optim.lr=0.01"]
    given += ["rollout.importance_cap=0.5"]  # no rounding: a bias of keys has a gradient of 0, which Adam would enlarge
    given += ["objective={mixing: {kind: fixed, value: 1}, policy_gradient: {scope: all}, kl: {text: 0, speech: 0}}"]
    given += [f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:proper', low: 0, high: 1}}]"]
    for n in (1, 2, *DEEPSPEED):
        train(folder, f"aloud-{n}", *given, processes=n)
    for n in (2, *DEEPSPEED):
        enlarged = 5e-3 if n == "zero3" else 0.0  # which runs a prompt for each of its answers, and so sums otherwise
        assert_one(folder, "aloud-1", f"aloud-{n}", steps=2, model=model, enlarged=enlarged)


def silent(folder: Path, name: str) -> list[str]:
    """One step whose 16 answers are all proper, so that the reward is asked for every one of them."""
    reward = f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:{name}', low: 0, high: 1}}]"
    return [reward, "steps=1", "rollout.max_new_tokens=60", "optim.lr=0.002", "data.eval=null", "report=false"]


def test_a_judge_silent_for_one_process_is_weighed_over_all(folder):
    """5 of 8 here, 0 of 8 there: 5 of 16 are tolerated, and the means are over the 11 that were judged."""
    for n in (1, 2):
        train(folder, f"five-{n}", *silent(folder, "all_but_five"), processes=n)
    [line] = metrics(folder / "five-2")
    assert [line[f"outcomes/{kind}"] for kind in ("scored", "invalid", "unavailable")] == [11, 0, 5]
    assert_one(folder, "five-1", "five-2", steps=1)


def test_a_dead_judge_stops_all_processes_with_one_error(folder):
    """4 of 8 here, which alone is tolerated, 5 of 8 there: both stop, for the same 9 of 16."""
    done = ended(folder, "nine", *silent(folder, "all_but_nine"), processes=2)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "judgements" in line]
    reason = "are unavailable (more than 50%), most often: the function gave no score"
    assert said and {line.partition(": ")[2] for line in said} == {f"9 of 16 judgements {reason}"}
    assert "src/elocute" not in done.stderr
    assert not (folder / "nine/metrics.jsonl").exists()


def test_a_step_that_cannot_be_shared_evenly_is_one_clear_line(folder):
    done = ended(folder, "uneven", "rollout.prompts_per_step=3", processes=2)
    assert done.returncode in (1, 2)
    said = "rollout.prompts_per_step: expected a multiple of 2, the processes, got 3"
    assert said in done.stderr.splitlines()
    assert "failed (exitcode: 2)" in done.stderr  # torch would abort a process that leaves gloo's group by ending
    assert "src/elocute" not in done.stderr  # torchrun shows its own traceback, never one of ours
    assert not (folder / "uneven").exists()


def await_file(file: Path, process: subprocess.Popen) -> None:
    """Until a process has written it."""
    deadline = time.monotonic() + HANGS
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_in_one_process_stops_both_after_the_same_step(folder):
    process = subprocess.Popen(
        command(folder, "stopped", "steps=1000", "data.eval=null", processes=2), stderr=subprocess.PIPE, text=True
    )
    try:
        await_file(folder / "stopped/metrics.jsonl", process)
        workers = psutil.Process(process.pid).children()
        [second] = [worker for worker in workers if worker.environ().get("RANK") == "1"]
        second.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HANGS)
    finally:
        process.terminate()
    assert process.returncode == 1 and "--resume" in said
    steps = len(metrics(folder / "stopped"))
    assert (folder / f"stopped/checkpoints/step-{steps}/state.json").exists()


def test_when_one_process_is_killed_all_end_and_others_go_on_however_they_share_the_network(folder):
    """Killed in step 2, which its reward holds up until then. One goes on, or two with FSDP2, then four in layers."""
    given = ["data.eval=null", "report=false", "checkpoint.every=1", "optim.lr=0.002", "optim.schedule=constant"]
    train(folder, "whole", *given, processes=1)
    until_told = f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:until_told', low: 0, high: 1}}]"
    process = subprocess.Popen(command(folder, "killed", *given, until_told, processes=2), stderr=subprocess.PIPE)
    try:
        await_file(folder / "killed/checkpoints/step-1/state.json", process)
        workers = psutil.Process(process.pid).children()
        [second] = [worker for worker in workers if worker.environ().get("RANK") == "1"]
        second.kill()
        process.communicate(timeout=HANGS)
    finally:
        process.terminate()
    assert process.returncode == 1
    psutil.wait_procs(workers, timeout=HANGS)
    assert not any(worker.is_running() for worker in workers)
    (folder / "told").touch()
    shutil.copytree(folder / "killed", folder / "again")
    train(folder, "killed", *given, until_told, "--resume", processes=1)
    assert_one(folder, "whole", "killed")
    train(folder, "again", *given, until_told, "steps=2", "--resume", processes="fsdp2")
    train(folder, "again", *given, until_told, "--resume", processes="layers")
    assert_one(folder, "whole", "again")


def without_a_launcher(*commands: list[str]) -> list[subprocess.Popen]:
    """One run's processes, a command each, as between machines: nobody ends the others when one has ended."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands))}
    return [
        subprocess.Popen(
            words,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, words in enumerate(commands)
    ]


@pytest.mark.parametrize("bad", [0, 1])
def test_one_whose_rows_are_bad_ends_with_its_line_before_the_first_step_and_the_other_with_one(folder, bad):
    (folder / "bad.jsonl").write_text('{"messages": 3}\n')
    words = command(folder, f"bad-{bad}", "data.eval=null", "report=false", processes=1)
    other = [*words, f"data.train={folder / 'bad.jsonl'}"]
    processes = without_a_launcher(*(other if rank == bad else words for rank in (0, 1)))
    try:
        said = [process.communicate(timeout=HANGS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2 if rank == bad else 1 for rank in (0, 1)], said
    assert f"{folder / 'bad.jsonl'}:1: messages" in said[bad]
    [line] = [line for line in said[1 - bad].splitlines() if "process" in line]
    assert line.endswith("the same command with --resume goes on")
    assert "Traceback" not in "".join(said)
    assert not (folder / f"bad-{bad}").exists()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (signal.SIGSTOP, "process 1 of the run has given no sign of life for 20 s; process 0 ends too"),
        (signal.SIGKILL, "another process of the run has ended"),
    ],
)
def test_a_process_that_is_gone_ends_all_where_no_launcher_sees_to_it(folder, end, reason):
    """As between machines. One that is stopped closes no connection, like a machine that is cut off."""
    program = "import elocute.training.pulse as pulse; pulse.BEAT, pulse.PATIENCE = 0.5, 40\n"
    program += "from elocute.cli.app import main; main()"
    words = command(folder, end.name, "steps=100000", "data.eval=null", "report=false", processes=1)
    words = [sys.executable, "-c", program, *words[words.index("train") :]]
    first, second = without_a_launcher(words, words)
    try:
        await_file(folder / end.name / "metrics.jsonl", first)
        second.send_signal(end)
        _, said = first.communicate(timeout=HANGS)
        assert first.returncode == 1
        [line] = [line for line in said.splitlines() if reason in line]
        assert line.endswith("the same command with --resume goes on")
        assert "src/elocute" not in said
        second.send_signal(signal.SIGCONT)
        second.communicate(timeout=HANGS)
        assert second.returncode == (1 if end == signal.SIGSTOP else -signal.SIGKILL)
    finally:
        first.kill()
        second.kill()
