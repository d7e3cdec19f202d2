"""The command line as users meet it: a process of its own, exit statuses, one line for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from elocute.cli.evaluate import _ear
from elocute.cli.options import resume_command
from elocute.recipe.ears import FasterWhisperSpec, TransformersEarSpec
from tests.training.preferences import preference_rows, write_rows
from tests.training.run_metrics import metrics

RECIPE = "recipes/starter/wavalign.yaml"
HELD_OUT = "starter/data/heldout.jsonl"
DIVIDED = [("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_USE_DEEPSPEED", "true")]
SMALL = ["rollout.group_size=2", "rollout.prompts_per_step=2", "rollout.max_new_tokens=10", "evaluation.rows=4"]


def elocute(*words: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "elocute.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: cannot read the recipe"),
        (["train", RECIPE, "optim.lr=fast"], "optim.lr: input should be a valid number"),
        (["train", RECIPE, "optim.learning_rate=1"], "optim.learning_rate: unknown key"),
        (["train", RECIPE, "rollout.temperature=0"], "rollout.temperature: input should be greater than 0"),
        (["train", RECIPE, "data.train=missing.jsonl"], "data.train: no such file: missing.jsonl"),
        (["train", RECIPE, "steps"], "expected key=value"),
        (["report", "nowhere"], "nowhere"),
        (["chat", "nowhere", "--text", "hello"], "expected a folder"),
        (["eval", "nowhere", "--data", HELD_OUT, "-o", "out"], "nowhere: model: expected a folder"),
        (["eval", "nowhere", "--data", HELD_OUT, "-o", "src"], "-o src: expected a new folder or an empty one"),
        (["eval", "src", "--data", HELD_OUT, "-o", "out", "--ear", "nowhere"], "--ear: no such folder: nowhere"),
        (["eval", "src", "--data", HELD_OUT, "-o", "out", "--vocabulary", "src"], "--vocabulary: no such file: src"),
        (
            ["eval", "src", "--data", HELD_OUT, "-o", "out", "--vocabulary", "starter/answers.txt", "--ear", "src"],
            "--vocabulary: only PocketSphinx takes one",
        ),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said):
    done = elocute(*words)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_ear_by_its_name_or_by_its_folder(tmp_path):
    (tmp_path / "ctranslate2").mkdir()
    (tmp_path / "ctranslate2/model.bin").touch()
    assert _ear("whisper-tiny.en", None) == FasterWhisperSpec(kind="faster_whisper")
    own = FasterWhisperSpec(kind="faster_whisper", path=tmp_path / "ctranslate2")
    assert _ear(str(tmp_path / "ctranslate2"), None) == own
    assert _ear(str(tmp_path), None) == TransformersEarSpec(kind="transformers", path=tmp_path)


def test_every_bad_row_is_named(tiny_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": 3}\n\n{"messages": [\n')
    done = elocute("train", RECIPE, f"model={tiny_folder}", f"data.train={rows}", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert f"{rows}:1:" in done.stderr and f"{rows}:3:" in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_run_resolves_and_starts_nothing(tiny_folder, tmp_path):
    done = elocute("train", RECIPE, f"model={tiny_folder}", f"run_dir={tmp_path / 'run'}", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["data.train"] > 1000
    assert not (tmp_path / "run").exists()


def test_a_dry_run_asks_what_the_launcher_asks_for(tiny_folder, tmp_path):
    words = ["train", RECIPE, f"model={tiny_folder}", f"run_dir={tmp_path / 'run'}", "--dry-run"]
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_VERSION": "1"}
    done = elocute(*words, env=os.environ | asked)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["fsdp_version: expected 2, as in launch/fsdp2…yaml, got '1'"]


def test_a_dry_run_names_every_row_that_a_reward_cannot_judge(tiny_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    ask = '"messages": [{"role": "user", "content": "four?"}]'
    rows.write_text(f'{{{ask}}}\n{{{ask}, "answer": "4"}}\n{{{ask}, "answer": []}}\n')
    given = [f"model={tiny_folder}", f"data.train={rows}", f"run_dir={tmp_path / 'run'}"]
    done = elocute("train", RECIPE, *given, "--dry-run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{rows}:1: answer: expected an accepted answer or a list of them, found None",
        f"{rows}:3: answer: expected an accepted answer or a list of them, found []",
    ]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_every_row_that_lacks_an_answer(tiny_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    ask = '"messages": [{"role": "user", "content": "four?"}]'
    rows.write_text(f'{{{ask}, "rejected_text": "5"}}\n{{{ask}, "sft_target_text": "4"}}\n')
    words = [f"model={tiny_folder}", f"data.train={rows}", f"run_dir={tmp_path / 'run'}"]
    words += ["objective={kind: dpo, mode: offline}", "rewards=[]", "data.eval=null", "--dry-run"]
    done = elocute("train", RECIPE, *words)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        f"{rows}:1: sft_target_text, sft_target_audio: expected the answer to learn, got none",
        f"{rows}:2: rejected_text, rejected_audio: expected the answer to unlearn, got none",
    ]


def test_how_to_go_on_can_be_pasted(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", *dict(DIVIDED)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["elocute", "train", "my recipe.yaml", "--resume", "steps=5"])
    assert resume_command() == "elocute train 'my recipe.yaml' steps=5 --resume"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    launched = "torchrun --nproc_per_node=2 -m elocute.cli train 'my recipe.yaml' steps=5 --resume"
    assert resume_command() == launched


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "4"), *DIVIDED])
def test_how_to_go_on_leaves_its_words_to_a_launcher_that_was_told_more(monkeypatch, name, value):
    """Several machines, or a network that is divided: torchrun with a number of processes would be another launch."""
    for known in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(known, "2")
    for known, _ in DIVIDED:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["elocute", "train", "recipe.yaml"])
    assert resume_command() == "the same command with --resume at its end"
    monkeypatch.setattr(sys, "argv", ["elocute", "train", "recipe.yaml", "--resume"])
    assert resume_command() == "the same command"


def test_an_evaluation_from_the_command_line(tiny_folder, tmp_path):
    words = ["eval", tiny_folder, "--data", HELD_OUT, "-o", tmp_path / "out"]
    words += ["--rows", 3, "--max-new-tokens", 8, "--json"]
    dry = elocute(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout) == {"model": str(tiny_folder), "rows": 3} and not (tmp_path / "out").exists()
    done = elocute(*words, "--vocabulary", "starter/answers.txt")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values == json.loads((tmp_path / "out/eval.json").read_text())
    assert values["max_new_tokens"] == 8 and "closed vocabulary" in values["ear"]
    assert values["result"]["answer_accuracy_text"]["n"] == 3
    again = elocute(*words)
    assert again.returncode == 2 and "expected a new folder or an empty one" in again.stderr


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, list[str]]:
    """A recipe of each kind of objective, with what it is changed to."""
    folder = tmp_path_factory.mktemp("preferences")
    train, dev = (write_rows(folder / f"{n}.jsonl", preference_rows(5, first=n)) for n in (0, 300))
    dpo = ["rewards=[]", "objective.min_gap=0", "objective.mode=offline", "objective.reference=cached"]
    dpo += [f"data.train={train}", f"data.dev={dev}", f"objective.reference_cache={folder}"]
    return {"hybrid": [RECIPE], "dpo": ["recipes/starter/dpo.yaml", *dpo]}


@pytest.mark.parametrize("kind", ["hybrid", "dpo"])
def test_a_killed_run_resumes_to_the_same_bytes_and_a_report(tiny_folder, tmp_path, kinds, kind):
    words = ["train", *kinds[kind], f"model={tiny_folder}", "steps=6", "checkpoint.every=1", *SMALL]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "elocute.cli", *words, f"run_dir={killed}"], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(killed.glob("checkpoints/step-[2-5]")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = elocute(*words, f"run_dir={killed}")
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = elocute(*words, f"run_dir={killed}", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "report.html" in resumed.stdout
    assert elocute(*words, f"run_dir={whole}").returncode == 0
    for name in (
        "model/model.safetensors",
        "checkpoints/step-6/optimizer.safetensors",
        "checkpoints/step-6/state.json",
    ):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(killed) == metrics(whole)
    values = [json.loads((run / "eval.json").read_text()) for run in (killed, whole)]
    for evaluated, run in zip(values, (killed, whole), strict=True):
        assert evaluated["step"] == {"before": 0, "after": 6}, run
    assert values[0] == values[1]
    assert set(values[0]["after"]) == {"answer_accuracy_text", "answer_accuracy_speech", "speech_wer", "broken_audio"}


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tiny_folder, tmp_path):
    words = ["train", RECIPE, f"model={tiny_folder}", "steps=500", f"run_dir={tmp_path / 'run'}", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "elocute.cli", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for((tmp_path / "run/metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopping after this step" in said.splitlines()
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said
    steps = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert (tmp_path / f"run/checkpoints/step-{steps}/state.json").exists()


def wait_for(condition, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.02)


os.environ.setdefault("OMP_NUM_THREADS", "2")
