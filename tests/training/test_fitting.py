"""A run that cannot fit is refused before anything is loaded, with numbers of the recipe with which it would."""

import re
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from elocute.cli import app
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models.sizes import Sizes, sizes_by_config
from elocute.recipe import load_recipe
from elocute.training import trainer as trainer_module
from elocute.training.fitting import changed, check_memory, fitting
from elocute.training.machine import GIB, Machine
from elocute.training.memory import _LIBRARIES, Lengths, reckon
from elocute.training.trainer import Trainer

WAVALIGN = "recipes/starter/wavalign.yaml"
SMALL = _LIBRARIES + (20 << 20)
LENGTHS = Lengths(prompt=200, answer=100, evaluated=64)


@pytest.fixture(scope="module")
def qwen() -> Sizes:
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18_944, tie_word_embeddings=False,
    )  # fmt: skip
    return sizes_by_config(config)


def recipe(*overrides: str):
    return load_recipe(WAVALIGN, ["rollout.max_new_tokens=1024", *overrides])


LORA = ("lora.rank=16", "dtype=bfloat16", "optim.micro_batch=16")


@pytest.mark.parametrize(
    ("overrides", "gib", "expected"),
    [
        (LORA, 80, {"optim.micro_batch": 8}),
        (LORA, 30, {"optim.micro_batch": 1}),
        (("lora.rank=16", "optim.micro_batch=2", "rollout.max_new_tokens=512"), 50, {"dtype": "bfloat16"}),
        ((*LORA, "rollout.group_size=64", "optim.micro_batch=1"), 40, {"rollout.prompts_per_step": 4}),
        (("optim.micro_batch=2",), 80, {"lora.rank": 8}),
        ((), 160, {"lora.rank": 8, "optim.micro_batch": 8}),
    ],
)
def test_what_would_fit_does(qwen, overrides, gib, expected):
    given, machine = recipe(*overrides), Machine(gib * GIB, gpu=True)
    assert reckon(given, qwen, LENGTHS, machine).bytes > machine.bytes
    found = fitting(given, qwen, LENGTHS, machine)
    assert found == expected
    assert reckon(changed(given, found), qwen, LENGTHS, machine).bytes <= machine.bytes


def test_an_evaluation_is_made_smaller_too(qwen):
    given, machine = recipe(*LORA, "optim.micro_batch=1", "evaluation.batch=1024"), Machine(40 * GIB, gpu=True)
    assert fitting(given, qwen, Lengths(evaluated=1024), machine) == {"evaluation.batch": 256}


def test_the_micro_batch_is_the_largest_of_its_halves(qwen):
    given, machine = recipe(*LORA), Machine(80 * GIB, gpu=True)
    [(key, rows)] = fitting(given, qwen, LENGTHS, machine).items()
    assert reckon(changed(given, {key: 2 * rows}), qwen, LENGTHS, machine).bytes > machine.bytes


def test_where_nothing_helps_nothing_is_said(qwen):
    assert fitting(recipe("freeze=[embed]"), qwen, LENGTHS, Machine(80 * GIB, gpu=True)) is None
    assert fitting(recipe(), qwen, LENGTHS, Machine(8 * GIB, gpu=True)) is None  # not even its weights in bfloat16


def test_prompts_stay_a_multiple_of_the_processes(qwen):
    given = recipe(*LORA, "rollout.group_size=128", "rollout.prompts_per_step=12", "optim.micro_batch=1")
    machine = Machine(30 * GIB, gpu=True, processes=4)
    found = fitting(given, qwen, Lengths(), machine)
    assert found == {"rollout.prompts_per_step": 4}
    assert reckon(changed(given, found), qwen, Lengths(), machine).bytes <= machine.bytes


# the check


@pytest.fixture
def given(tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "model")
    own = [f"model={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", "data.eval=null", "report=false"]
    return lambda *more: load_recipe(WAVALIGN, [*own, *more])


def test_it_is_refused_before_anything_is_loaded(given, monkeypatch):
    monkeypatch.setattr(trainer_module, "load_policy", lambda recipe: pytest.fail("the model was loaded"))
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(SMALL)))
    with pytest.raises(InputError) as caught:
        Trainer(given())
    line = str(caught.value)
    assert "\n" not in line
    changes = re.search(r"main memory; (.*) needs 0\.\d+ GiB; memory_check=false", line)[1].split()
    assert any(word.startswith("optim.micro_batch=") for word in changes)
    rows = read_rows(given().data.train)
    smaller = check_memory(given(*changes), rows, Machine(SMALL))
    assert smaller.bytes <= SMALL
    with pytest.raises(InputError):
        check_memory(given(), rows, Machine(SMALL))


def test_who_knows_better_starts_it(given):
    rows = read_rows(given().data.train)
    assert check_memory(given("memory_check=false"), rows, Machine(1)).bytes > 1
    assert check_memory(given(), rows, Machine(None)).bytes > 1  # nobody knows how much there is
    with pytest.raises(InputError, match="no dtype, lora, micro_batch or group_size makes it fit"):
        check_memory(given(), rows, Machine(1))


def test_a_folder_that_says_nothing_is_not_refused(given, tmp_path):
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.write_bytes(b"cut off")
    assert check_memory(given(), [], Machine(1)) is None


def test_a_dry_run_says_it(given, monkeypatch, capsys, tmp_path):
    words = [WAVALIGN, f"model={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", "data.eval=null", "--dry-run"]
    app(["train", *words], standalone_mode=False)
    assert "# memory: a process needs" in capsys.readouterr().out
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(1)))
    with pytest.raises(InputError, match="memory: a process needs"):
        app(["train", *words], standalone_mode=False)


def test_lora_is_no_advice_where_it_finds_nothing():
    network = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, vocab_size=50))
    odd = Sizes({name.replace("_proj", ""): tuple(weight.shape) for name, weight in network.named_parameters()})
    need = reckon(recipe(), odd, Lengths(), Machine(None, gpu=True))
    machine = Machine(need.parts["weights"] * 3, gpu=True)
    assert "lora.rank" not in (fitting(recipe(), odd, Lengths(), machine) or {})


def test_models_of_this_repository_fit_their_recipes():
    for file in Path("recipes/starter").glob("*.yaml"):
        if file.stem != "align_slm":  # its rows become pairs first
            found = load_recipe(file, ["data.eval=null"])
            assert check_memory(found, read_rows(found.data.train), Machine(4 * GIB)).bytes < 2 * GIB
