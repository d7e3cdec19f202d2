"""What a run needs of memory: by hand for a model of 7B, and beside what real runs took."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import Qwen2Config

from elocute.data.types import AudioRef, Example, Message
from elocute.models.sizes import Sizes, sizes_by_config
from elocute.recipe import load_recipe
from elocute.training.machine import GIB, Machine
from elocute.training.memory import FLOAT, Lengths, _jobs, lengths_of, reckon, trained_numbers
from elocute.training.zero import BUCKET

GPU = Machine(80 * GIB, gpu=True)


@pytest.fixture(scope="module")
def qwen() -> Sizes:
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18_944, tie_word_embeddings=False,
    )  # fmt: skip
    return sizes_by_config(config)


def recipe(*overrides: str):
    return load_recipe("recipes/starter/wavalign.yaml", ["data.eval=null", *overrides])


def parts(sizes: Sizes, machine: Machine, *overrides: str) -> tuple[str, dict[str, float]]:
    """The highest moment and its parts in GiB."""
    need = reckon(recipe(*overrides), sizes, Lengths(), machine)
    assert sum(need.parts.values()) == need.bytes
    return need.moment, {name: value / GIB for name, value in need.parts.items()}


def test_all_weights_of_7_billion(qwen):
    """7.616 · 10⁹ numbers are 28.37 GiB in float32; each has two moments, a gradient, and a copy in the reference."""
    small = ["rollout.max_new_tokens=8", "optim.micro_batch=1"]
    moment, found = parts(qwen, GPU, *small)
    assert moment == "step"
    assert found == pytest.approx(
        {"weights": 28.37, "AdamW": 56.74, "reference": 28.37, "gradients": 28.37, "scratch": 28.37}, abs=0.01
    )
    _, found = parts(qwen, Machine(None, gpu=True, processes=2), *small)
    assert found["gradients"] == pytest.approx(2 * 28.37, abs=0.01)
    _, found = parts(qwen, GPU, *small, "objective.kl={text: 0, speech: 0}", "freeze=[mlp]")
    assert "reference" not in found
    assert found["AdamW"] == pytest.approx(8 * (7_615_616_512 - 28 * 3 * 3584 * 18_944) / GIB)


def test_lora_of_7_billion(qwen):
    """In bfloat16 14.19 GiB; rank 16 on all seven maps of a layer: 16 · (9 · 3584 + 2 · 512 + 3 · 18 944) numbers."""
    lora = ["lora.rank=16", "dtype=bfloat16"]
    numbers = 28 * 16 * (9 * 3584 + 2 * 512 + 3 * 18_944)
    assert trained_numbers(recipe(*lora), qwen) == numbers == 40_370_176
    moment, found = parts(qwen, GPU, *lora, "optim.micro_batch=16", "rollout.max_new_tokens=1024")
    assert moment == "update" and "reference" not in found
    assert found["weights"] == pytest.approx((2 * 7_615_616_512 + 4 * numbers) / GIB)
    assert found["AdamW"] == pytest.approx(8 * numbers / GIB)
    kept = 28 * (9 * 3584 + 2 * 512 + 4 * 18_944)
    norms = 4 * 4 * 3584  # stay float32
    assert found["activations"] == pytest.approx(16 * 1024 * 29 * (2 * kept / 28 + norms) / GIB)  # 121.9
    long = ["optim.micro_batch=1", "rollout.group_size=64", "rollout.max_new_tokens=1024"]
    moment, found = parts(qwen, GPU, *lora, *long)
    assert moment == "rollout"  # 8 prompts · 64 answers · 1024 steps · 57 344 bytes
    assert found["keys and values"] == pytest.approx(8 * 64 * 1024 * 28 * 2 * 512 * 2 / GIB) == pytest.approx(28.0)
    assert parts(qwen, GPU, *lora, *long, "rollout.vllm.url=http://127.0.0.1:8000")[0] != "rollout"
    moment, found = parts(qwen, GPU, *lora, "optim.micro_batch=1", "rollout.max_new_tokens=8")
    assert moment == "saving"
    assert found["merged weights"] == pytest.approx(14.19, abs=0.01)


def test_gradient_checkpointing_keeps_what_goes_into_layers(qwen):
    lora = ["lora.rank=16", "dtype=bfloat16", "optim.micro_batch=64", "rollout.max_new_tokens=1024"]
    _, found = parts(qwen, GPU, *lora, "gradient_checkpointing=true")
    layer = 9 * 3584 + 2 * 512 + 4 * 18_944
    kept = 28 * 2 * 3584 + 2 * (2 * layer + 16 * 3584)
    assert found["activations"] == pytest.approx(64 * 1024 * kept / GIB)  # 45.9


def test_what_processes_divide_of_7_billion(qwen):
    """By 8. A pass through divided layers has whole what is in none of them, two layers of 28, and their gradients."""
    numbers, outside = 7_615_616_512, 2 * 152_064 * 3584 + 3584
    whole = 4 * numbers / GIB
    small = ["rollout.prompts_per_step=8", "rollout.max_new_tokens=8", "optim.micro_batch=1"]
    moment, found = parts(qwen, Machine(None, gpu=True, processes=8, shared="unit"), *small)
    assert moment == "backward's end"
    held = {"weights": whole, "reference": whole, "AdamW": whole / 4, "parts of weights": whole / 8}
    assert found == pytest.approx(held | {"gradients": 3 * whole})
    layers = Machine(None, gpu=True, processes=8, shared="layers")
    pairs = "objective={kind: dpo, mode: offline, beta: 0.1, scope: all}"
    moment, found = parts(qwen, layers, pairs, "optim.micro_batch=1", "rollout.prompts_per_step=8")
    assert moment == "loading" and found == pytest.approx({"weights": whole, "reference": whole})
    alone = "objective.kl={text: 0, speech: 0}"
    moment, found = parts(qwen, layers, *small, alone)
    assert moment == "rollout"
    held = {"weights": whole / 8, "AdamW": whole / 4, "whole weights": whole}
    assert {name: found[name] for name in held} == pytest.approx(held)
    moment, found = parts(qwen, layers, alone, "optim.micro_batch=16", "rollout.max_new_tokens=1024")
    assert moment == "update" and found["gradients"] == pytest.approx(whole / 8)
    assert found["whole layers"] == pytest.approx(2 * 4 * (outside + (numbers - outside) / 14) / GIB)


def test_lean_decoding_keeps_a_prompt_once_for_its_answers(qwen):
    """4 prompts of 1,000, 256 answers of 64 to each: 28 672 numbers a step."""
    changes = ["lora.rank=16", "rollout.prompts_per_step=4", "rollout.group_size=256", "rollout.max_new_tokens=64"]
    for sizes, dtype, steps in (
        (qwen, "float32", 4 * 1000 + 1024 * 64),
        (replace(qwen, lean=False), "float32", 1024 * 1064),
        (qwen, "bfloat16", 1024 * 1064),  # goes through transformers' modules
    ):
        need = reckon(recipe(*changes, "optim.micro_batch=1", f"dtype={dtype}"), sizes, Lengths(prompt=1000), GPU)
        assert need.moment == "rollout"
        assert need.parts["keys and values"] == steps * 28 * 2 * 512 * (4 if dtype == "float32" else 2)
        assert ("joined weights" in need.parts) == (steps < 100_000)


def test_where_layers_are_divided_a_prompt_is_run_for_each_answer(qwen):
    changes = ["lora.rank=16", "optim.micro_batch=8", "rollout.group_size=8", "rollout.max_new_tokens=1024"]
    layer = 4 * (9 * 3584 + 2 * 512 + 4 * 18_944)
    for shared, kept in (
        ("unit", (8 * 1024 + 1000) * 29 * layer + 8 * 1000 * 4 * 28 * 2 * 512),
        ("layers", 8 * 2024 * 29 * layer),
    ):
        machine = Machine(None, gpu=True, processes=2, shared=shared)
        need = reckon(recipe(*changes), qwen, Lengths(prompt=1000), machine)
        assert need.moment == "update" and need.parts["activations"] == kept
    wide = recipe("optim.micro_batch=64", "rollout.group_size=64", "rollout.max_new_tokens=16")
    for shared, rows in (("unit", 64), ("layers", 2)):  # on a CPU, of 2,048 cells
        job = next(_jobs(wide, Lengths(prompt=1000), Machine(None, processes=2, shared=shared)))
        assert job.rows == rows


def test_dividing_needs_memory_of_its_own_while_it_saves(qwen):
    small = ["rollout.group_size=2", "rollout.prompts_per_step=4", "rollout.max_new_tokens=4"]
    four = {shared: Machine(None, processes=4, shared=shared) for shared in ("unit", "layers", "zero2", "zero3")}
    every = FLOAT * qwen.weights
    need = reckon(recipe(*small), qwen, Lengths(), four["zero3"])
    assert (
        need.moment == "checkpoint"
    )  # of divided layers the parts of everything, and the first process's whole tensors
    found = dict.fromkeys(("weights", "reference", "parts of weights", "gradients"), every // 4)
    found |= {"AdamW": every // 2, "whole weights": every, "whole checkpoint": 3 * every, "exchange": FLOAT * BUCKET}
    assert {name: value for name, value in need.parts.items() if name != "libraries"} == found
    layers = reckon(recipe(*small), qwen, Lengths(), four["layers"])
    assert layers.moment == "checkpoint"
    assert need.parts.keys() - layers.parts.keys() == {"parts of weights", "gradients", "exchange", "whole weights"}
    for shared, again in (("unit", True), ("zero2", False)):  # FSDP2 loads the network anew, to save it
        machine = replace(four[shared], gpu=True)
        saving = reckon(recipe(*small, "lora.rank=1"), qwen, Lengths(), machine)
        assert saving.moment == "saving" and ("weights again" in saving.parts) == again


def test_what_is_frozen_keeps_nothing_below_what_is_trained(qwen):
    """Of 28 layers the last is trained, and the head or not: its activations, and its gradients."""
    below = r"embed_tokens, 'layers\.(\d|1\d|2[0-6])\.'"
    changes = ["optim.micro_batch=16", "rollout.max_new_tokens=1024", "rollout.vllm.url=http://127.0.0.1:8000"]
    ends = 16 * 1024 * 4 * 8 * 3584 + (16 << 20)
    for frozen, head in ((f"[{below}]", 4 * 152_064 * 3584), (f"[{below}, lm_head]", 0)):
        need = reckon(recipe(*changes, f"freeze={frozen}"), qwen, Lengths(), GPU)
        assert need.moment == "update"
        assert need.parts["activations"] == 16 * 1024 * 2 * 4 * (9 * 3584 + 2 * 512 + 4 * 18_944)
        assert need.parts["log-probs"] == ends + head
    checked = reckon(recipe(*changes, f"freeze=[{below}]", "gradient_checkpointing=true"), qwen, Lengths(), GPU)
    inputs = 16 * 1024 * 4 * (28 * 3584 + 2 * (9 * 3584 + 2 * 512 + 4 * 18_944))
    assert checked.parts["activations"] == inputs  # there the gradient goes down to the embeddings all the same


def test_recorded_answers_are_as_long_as_they_are():
    row = Example(
        "1",
        (Message("user", "x" * 40 + "<|audio|>"),),
        (AudioRef("starter/stories/prompts.safetensors", "garden-1-tom-aunt-0"),),
        target_text="y" * 80,
        target_audio=AudioRef("none.wav", units=(1,) * 30),
        rejected_audio=AudioRef("missing.wav"),
    )
    found = lengths_of(recipe(), [row])
    assert found.answer == 20 + 30 and found.evaluated == 0
    assert 12 + 20 < found.prompt < 12 + 200
    sound = Example("2", (), (AudioRef("starter/audio/heldout-sum-0000.question.wav"),))
    assert 12 < lengths_of(recipe(), [sound]).prompt < 30
    assert lengths_of(recipe(), []).prompt == 0
    evaluated = load_recipe("recipes/starter/wavalign.yaml", ["evaluation.rows=20"])
    assert lengths_of(evaluated, []).evaluated == 20


DPO = "objective={kind: dpo, mode: best_worst, beta: 0.1, scope: all}"
RUNS = {
    "all weights": (8, {"group": 32, "length": 32}, []),
    "gradient checkpointing": (8, {"group": 32, "length": 32}, ["gradient_checkpointing=true"]),
    "LoRA": (8, {"group": 32, "length": 32}, ["lora.rank=16"]),
    "many passes": (8, {"group": 32, "length": 32}, ["optim.micro_batch=4"]),
    "large vocabulary": (2, {"length": 32, "vocabulary": 65_536}, []),
    "all but the last layer frozen": (8, {"group": 32, "length": 32}, [r"freeze=[embed_tokens, 'layers\.[0-6]\.']"]),
    "preferences": (8, {"group": 4, "length": 128, "prompts": 2}, [DPO]),
}


@pytest.fixture(scope="module")
def peaks() -> dict[str, dict]:
    words = [sys.executable, "-m", "tests.training.peak", *map(json.dumps, RUNS.values())]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(RUNS, found, strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_it_is_about_what_a_run_takes(peaks, name):
    assert 0.7 < peaks[name]["reckoned"] / peaks[name]["measured"] < 1.5, peaks[name]
