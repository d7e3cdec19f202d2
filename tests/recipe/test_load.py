"""A recipe read and overridden; each mistake is one line that names the key as the user wrote it."""

from pathlib import Path

import pytest
import yaml

from elocute.errors import InputError
from elocute.recipe import dump_recipe, load_recipe

RECIPE = "recipes/starter/wavalign.yaml"


def load(*overrides: str):
    return load_recipe(RECIPE, ["model=src", *overrides])  # any folder will do: the model is not opened


def problem(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(*overrides)
    return str(caught.value).removeprefix(f"{RECIPE}: ")


def at(recipe, key: str):
    for part in key.split("."):
        recipe = recipe[int(part)] if part.isdigit() else getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("rewards.0.weight=2", 2.0),
        ("rewards.0.gate={reward: other, at_least: 0.5}", None),
        ("run_dir=2026", Path("2026")),
        ("run_dir=2026-11-21", Path("2026-11-21")),
        ("run_dir=2026-13-45", Path("2026-13-45")),
        ("run_dir=runs/a: b", Path("runs/a: b")),
        ("run_dir=12:30", Path("12:30")),
        ("run_dir='2026'", Path("2026")),
        ("run_dir=runs/a b", Path("runs/a b")),
        ("steps=100", 100),
        ("optim.lr=1e-4", 1e-4),
        ("optim.betas=[0.5, 0.9]", (0.5, 0.9)),
        ("gradient_checkpointing=true", True),
        ("report=no", False),
        ("data.eval=null", None),
        ("reward_mix.invalid_penalty=0.5", 0.5),
        ("lora.rank=4", 4),
        ("lora={}", None),
        ("rewards.0.column=2026", "2026"),
        ("evaluation.rows=7", 7),
    ],
)
def test_an_override_means_what_the_schema_says(override, value):
    key, _, text = override.partition("=")
    found = at(load(override), key)
    if text.startswith("{"):
        assert found is not None and (not hasattr(found, "at_least") or found.at_least == 0.5)
    else:
        assert found == value and type(found) is type(value)


def test_an_objective_without_a_kind_is_the_hybrid_one():
    recipe = load()
    assert recipe.objective.kind == "hybrid" and recipe.objective.kl.speech == 0.01
    assert load("objective={}").objective == load("objective={kind: hybrid}").objective


def test_a_preference_objective():
    recipe = load_recipe("recipes/starter/dpo.yaml", ["model=src", "data.dev=starter/data/train.jsonl"])
    assert recipe.objective.judges and recipe.objective.uses_reference and not recipe.objective.exact_kl
    ipo = load(
        "rewards=[]", "objective={kind: dpo, mode: offline, loss: ipo, reference: cached, pair_weight: score_gap}"
    )
    assert ipo.objective.by_length and not ipo.objective.samples and not ipo.objective.uses_reference
    assert load("rewards=[]", "objective={kind: dpo, scope: speech, text_weight: 3}").objective.weights == (0.0, 1.0)


def test_overrides_leave_the_rest_alone():
    plain, changed = load(), load("rewards.0.weight=2", "optim.lr=1e-4")
    assert changed.rewards[0].model_copy(update={"weight": 1.0}) == plain.rewards[0]
    assert changed.optim.model_copy(update={"lr": plain.optim.lr}) == plain.optim
    assert changed.rollout == plain.rollout and changed.objective == plain.objective


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "'steps': expected key=value, for example optim.lr=1e-4"),
        ("=3", "'=3': expected key=value, for example optim.lr=1e-4"),
        ("seed.x=2", "'seed.x=2': seed is no section of the recipe"),
        ("rewards.1.weight=2", "'rewards.1.weight=2': 1 is no place in a list of 1"),
        ("rewards.first.weight=2", "'rewards.first.weight=2': first is no place in a list of 1"),
        ("rewards.1=2", "'rewards.1=2': 1 is no place in a list of 1"),
        ("optim.betas=[0.9", "'optim.betas=[0.9': the value is not YAML"),
    ],
)
def test_an_override_that_leads_nowhere(override, said):
    assert problem(override) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("colour=red", "colour: unknown key"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("steps=0", "steps: input should be greater than or equal to 1, got '0'"),
        ("steps=1.5", "steps: input should be a valid integer"),
        ("gradient_checkpointing=maybe", "gradient_checkpointing: input should be a valid boolean"),
        ("optim.lr=fast", "optim.lr: input should be a valid number"),
        ("optim.lr=inf", "optim.lr: input should be a finite number, got 'inf'"),
        ("optim.lr=nan", "optim.lr: input should be a finite number, got 'nan'"),
        ("optim.lr=.inf", "optim.lr: input should be a valid number"),
        ("optim.betas=[0.9, 1]", "optim.betas.1: input should be less than 1, got 1"),
        ("optim.betas=[-0.1, 0.9]", "optim.betas.0: input should be greater than or equal to 0, got -0.1"),
        ("optim.betas=[0.9]", "optim.betas.1: field required"),
        ("optim.betas=[0.9, .nan]", "optim.betas.1: input should be"),
        ("reward_mix.invalid_penalty=inf", "reward_mix.invalid_penalty: input should be a finite number"),
        ("rewards.0.weight=inf", "rewards.0.weight: input should be a finite number, got 'inf'"),
        ("rewards.0.gate={reward: a, at_least: .nan}", "rewards.0.gate.at_least: input should be a finite number"),
        ("rewards.0.kind=rules", "rewards.0: kind: expected 'rule', 'asr', 'embedding', 'classifier', "),
        ("rewards.0={column: a}", "rewards.0: kind: missing"),
        ("rewards.0={kind: rule}", "rewards.0.column: field required"),
        ("rewards.0.column=[a]", "rewards.0.column: input should be a valid string, got ['a']"),
        ("rewards.0.colour=red", "rewards.0.colour: unknown key"),
        ("rewards.0={kind: function, low: 0, high: 1}", "rewards.0.function: field required"),
        ("rewards.0={kind: function, function: 'm:f', low: a, high: 1}", "rewards.0.low: input should be a valid"),
        ("rewards.0={kind: function, function: 'm:f', low: 1, high: 1}", "rewards.0: low must be below high"),
        ("rewards.0={kind: asr, ear: {kind: ears}}", "rewards.0.ear: kind: expected 'pocketsphinx', 'transformers'"),
        ("rewards.0={kind: asr, ear: {kind: pocketsphinx, workers: 0}}", "rewards.0.ear.workers: input should be"),
        ("evaluation.ear={kind: transformers, path: nowhere}", "evaluation.ear.path: path does not point to a dir"),
        ("objective.mixing={kind: fixed, value: 2}", "objective.mixing.value: input should be less than or equal to 1"),
        ("objective.mixing={kind: mixed}", "objective.mixing: kind: expected 'adaptive', 'fixed', got 'mixed'"),
        ("rewards=[]", "rewards: expected at least one, the objective samples answers"),
        ("objective={kind: ppo}", "objective: kind: expected 'hybrid', 'dpo', got 'ppo'"),
        ("objective={kind: dpo, beta: 0}", "objective.beta: input should be greater than 0, got 0"),
        ("objective={kind: dpo, kl: {text: 1}}", "objective.kl: unknown key"),
        (
            "objective={kind: dpo, loss: ipo, label_smoothing: 0.1}",
            "objective: label_smoothing: only with loss: sigmoid",
        ),
        ("objective={kind: dpo, min_gap: 1}", "objective: min_gap: only with mode: best_worst"),
        ("objective={kind: dpo, mode: auto, pair_weight: w}", "objective: pair_weight: only with mode: offline"),
        (
            "objective={kind: dpo, mode: online, reference: cached}",
            "objective: reference: cached: only with mode: offline",
        ),
        ("data.dev=starter/data/train.jsonl", "data.dev: preferences are measured with objective.kind: dpo only"),
        ("data.dev=missing.jsonl", "data.dev: "),
        ("optim.updates_per_rollout=2", "objective.policy_gradient.clip: expected with optim.updates_per_rollout"),
        ("rollout.off_policy_steps=2", "rollout.off_policy_steps: input should be less than or equal to 1"),
        ("data.train=missing.jsonl", "data.train: no such file: missing.jsonl"),
        ("data.eval=missing.jsonl", "data.eval: no such file: missing.jsonl"),
        ("model=missing", "model: no such folder: missing"),
    ],
)
def test_a_mistake_is_one_line_that_starts_with_its_key(override, said):
    message = problem(override)
    assert message.startswith(said) and "\n" not in message


@pytest.mark.parametrize("objective", ["{mixing: {kind: fixed, value: 0}}", "{kind: dpo, mode: online}"])
def test_nothing_is_sampled_ahead_of_rewards_that_are_not_asked(objective):
    said = problem(f"objective={objective}", "rollout.off_policy_steps=1")
    assert said == "rollout.off_policy_steps: expected 0, no reward is waited for with this objective"
    load("objective={kind: dpo, mode: best_worst}", "rollout.off_policy_steps=1")


def test_all_mistakes_are_said_at_once():
    lines = problem("steps=0", "optim.lr=fast", "rewards.0={kind: rule}").split("\n")
    assert [line.removeprefix(f"{RECIPE}: ").split(":")[0] for line in lines] == [
        "steps", "rewards.0.column", "optim.lr",
    ]  # fmt: skip


ASR = "rewards=[{kind: rule, column: answer}, {kind: asr, name: voice, ear: {kind: pocketsphinx, workers: 2}}]"


def test_the_ear_of_a_reward_does_not_judge_itself_in_the_evaluation(tmp_path):
    assert problem(ASR) == "evaluation.ear: 'voice' is the same and decides the run; choose another"
    load(ASR, "data.eval=null")  # nothing is evaluated
    load(ASR, "rewards.1.weight=0")  # only measured, never trained against
    assert "'voice' is the same" in problem(ASR, "rewards.1.weight=0", "rewards.0.gate={reward: voice, at_least: 1}")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    other = "evaluation.ear={kind: transformers, path: " + str(tmp_path / "one") + "}"
    load(ASR, other)
    same = "rewards=[{kind: asr, ear: {kind: transformers, device: cpu, path: " + str(tmp_path / "one") + "}}]"
    assert "'asr' is the same" in problem(same, other)
    load(same.replace("one", "two"), other)
    load(same)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [1", ":1: not YAML"),
        ("steps: 1\nseed: 2\nsteps: 3\n", ":3: not YAML: 'steps' comes twice"),
        ("- a\n", ": expected keys and values, got list"),
        ("", ": expected keys and values, got NoneType"),
        ("run_dir: 2026-13-45\n", ": not YAML: month must be in 1..12"),
        (b"\xff\xfe\x00", ": not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, said):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}{said}")


def test_a_saved_recipe_loads_as_the_same(tmp_path):
    recipe = load("run_dir=2026", "freeze=[embed_tokens]", "lora=null", "rewards.0.weight=2")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["run_dir"] == "2026"
