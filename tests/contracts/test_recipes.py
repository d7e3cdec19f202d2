"""Each seed's recipe from its rows to its report, on a tiny checkpoint: the command line, a judge behind HTTP."""

import json
import shutil
from collections import defaultdict
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.cli import app
from elocute.data.audio import load_audio, save_wav
from elocute.models import load_model
from elocute.recipe import load_recipe
from tests.contracts import glm4voice, kimi, kimi_sound, minicpm_o, slamkit, twist, unit_sound, vita_audio
from tests.contracts.leaning import lean
from tests.contracts.minicpm_o import SPECIALS
from tests.rewards.chat_server import Server, serving, verdict
from tests.speech.unit_models import speech

LENGTH = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")
SOON = ["steps=1", f"rollout.max_new_tokens={LENGTH}", "optim.lr=0.01", "optim.warmup_steps=0", "samples_every=1"]
"""One step, and one that can be seen: the papers' rates move nothing in it."""
LABELS = {"structure": "Statement", "emotion": "Happy", "speed": "Fast", "tone": "Declarative"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The seeds' folders as they are downloaded, side by side, and rows beside them."""
    home = tmp_path_factory.mktemp("home")
    for name, waveform in (("glm-4-voice-tokenizer", glm4voice.tokenizer), ("glm-4-voice-decoder", glm4voice.decoder)):
        waveform(home / name)
    unit_sound.build(home / "unit-codec")
    _vita(home / "VITA-Audio-Plus-Vanilla")
    _kimi(home / "Kimi-Audio-7B-Instruct")
    _minicpm(home / "MiniCPM-o-2_6")
    twist.opt(home / "TWIST-350M")
    slamkit.slam(home / "slam")
    _rows(home)
    return home


def _vita(folder: Path) -> None:
    vita_audio.plus(folder, n_mtp=0, n_units=48)
    ids = json.loads((folder / "tokenizer.json").read_text())
    ids = ids["model"]["vocab"] | {token["content"]: token["id"] for token in ids["added_tokens"]}
    spoken = {ids[f"<|audio_{unit}|>"]: 0.0 for unit in range(48)}
    said = {ids[letter]: 0.0 for letter in LETTERS} | spoken | {ids["<|im_end|>"]: 1.9}
    lean(folder, ["model.embed_tokens.weight"], ["model.norm.weight"], {"lm_head.weight": said})


def _kimi(folder: Path) -> None:
    kimi_sound.build(kimi.build(folder))
    written = {ord(letter): 0.0 for letter in LETTERS} | {kimi.N_BASE + 24: 2.2}
    spoken = {kimi.OFFSET + code: 0.0 for code in range(kimi.N_CODES)} | {kimi.N_BASE + 2: 1.7}
    heads = {"lm_head.weight": written, "mimo_output.weight": spoken}
    lean(folder, ["model.embed_tokens.weight"], ["model.norm.weight", "model.mimo_norm.weight"], heads)


def _minicpm(folder: Path) -> None:
    minicpm_o.checkpoint(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    ends = {"<|tts_eos|>": 2.2, "<|im_end|>": 1.5}
    written = {vocabulary[letter]: 0.0 for letter in LETTERS}
    written |= {256 + SPECIALS.index(token): logit for token, logit in ends.items()}
    lean(folder, ["llm.model.embed_tokens.weight"], ["llm.model.norm.weight"], {"llm.lm_head.weight": written})
    tables = ["tts.emb_text.weight", *(f"tts.emb_code.{q}.weight" for q in range(4))]
    # A codebook's weights are directions, all of about length 2: these for the end give it a logit that is about 2.8 at
    # the codebook's temperature, 0.1 or 0.3.
    directions = [f"tts.head_code.{q}.parametrizations.weight.original1" for q in range(4)]
    ends = {name: {625: (0.16, 0.5)[q % 2]} for q, name in enumerate(directions)}
    lean(folder, tables, ["tts.model.norm.weight"], ends, never=0.0)


def _rows(home: Path) -> None:
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // 2], rate)
    for number in range(8):
        save_wav(home / f"prompt-{number}.wav", speech(0.8, seed=number), 16000)
    answered = {"sft_target_text": "hel", "sft_target_audio": "1.wav"}
    heard = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["0.wav"], **answered}
    read = {"messages": [{"role": "user", "content": "hello"}], "question_text": "hello", **answered}
    _write(home / "rows.jsonl", [heard | {"question_text": "four plus forty eight"}, read])
    _write(home / "pairs.jsonl", [heard | {"rejected_text": "the", "rejected_audio": "2.wav"}, read])
    aloud = {"messages": [{"role": "user", "content": "the cat sat"}], "labels": LABELS}
    _write(home / "labelled.jsonl", [aloud, aloud | {"labels": LABELS | {"speed": "Slow"}}])
    prompts = [
        {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": [f"prompt-{n}.wav"]} for n in range(8)
    ]
    _write(home / "prompts.jsonl", prompts)
    said = [row | {"sft_target_audio": "prompt-1.wav", "rejected_audio": "prompt-2.wav"} for row in prompts[:2]]
    _write(home / "said.jsonl", said)


def _write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def judge(monkeypatch):
    """An OpenAI-compatible server: a verdict of 1 to 5, or labels where a reply of that form is asked for."""

    asked = defaultdict(count)

    def behave(server: Server, handler, body: dict, n: int) -> None:
        labels = LABELS | {"speed": ("Slow", "Fast")[n % 2]}
        place = next(asked[json.dumps(body["messages"][1]["content"][0])]) % 5  # among the answers to this prompt
        server.say(handler, json.dumps(labels) if "response_format" in body else verdict((5, 1, 3, 4, 2)[place]))

    with serving(behave) as server:
        monkeypatch.setenv("WAVALIGN_REWARD_API_KEY", "a-key")
        monkeypatch.setenv("WAVALIGN_REWARD_API_BASE", server.url)
        monkeypatch.setenv("WAVALIGN_REWARD_MODEL", "a-judge")
        yield server


SEEDS = {
    "vita_audio/wavalign": ("VITA-Audio-Plus-Vanilla", "rows.jsonl"),
    "vita_audio/dpo": ("VITA-Audio-Plus-Vanilla", "pairs.jsonl"),
    "kimi_audio/wavalign": ("Kimi-Audio-7B-Instruct", "rows.jsonl"),
    "minicpm_o/rlaif_spa": ("MiniCPM-o-2_6", "labelled.jsonl"),
    "slamkit/dpo": ("slam", "said.jsonl"),
}
ROUNDS = {"twist/align_slm": "TWIST-350M", "slamkit/align_slm": "slam"}


def words(home: Path, seed: str, run: Path, *more: str) -> list[str]:
    """The page's command, and where this test keeps what it makes."""
    model, rows = SEEDS.get(seed) or (ROUNDS[seed], "prompts.jsonl")
    given = [
        f"model={home / model}",
        f"data.train={home / rows}",
        f"run_dir={run}",
        f"data.cache={run.parent / 'cache'}",
    ]
    return ["rounds" if seed in ROUNDS else "train", f"recipes/{seed}.yaml", *given, *more]


@pytest.mark.parametrize("seed", [*SEEDS, *ROUNDS])
def test_the_command_is_all(home, judge, tmp_path, seed, capsys):
    """As it stands on the page, nothing else given: the recipe is valid, the folder is known, the judge is found."""
    app([*words(home, seed, tmp_path / "run"), "--dry-run"], standalone_mode=False)
    assert "run_dir" in capsys.readouterr().out and not (tmp_path / "run").exists() and judge.bodies == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recipe_from_rows_to_report(home, judge, tmp_path, seed, monkeypatch):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))
    run, model = tmp_path / "run", home / SEEDS[seed][0]
    recipe = load_recipe(f"recipes/{seed}.yaml", words(home, seed, run)[2:])
    prompts = "rollout.prompts_per_step=" + ("2" if seed == "slamkit/dpo" else "1")
    app(words(home, seed, run, *SOON, prompts), standalone_mode=False)
    [metrics] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if recipe.objective.judges:
        assert metrics["reward/mean"] is not None and 0 < len(judge.bodies) <= recipe.rollout.group_size
        assert all(sounds(body) for body in judge.bodies)
        assert list((run / "samples").rglob("*.wav"))
    assert (run / "report.html").is_file() and (run / "checkpoints/step-1/state.json").is_file()
    before, after = weights(model), weights(run / "model")
    left_out = {name for name in before if "inv_freq" in name} | {"lm.lm_head.weight"}
    assert set(after) <= set(before) and set(before) - set(after) <= left_out
    assert any(not torch.equal(before[name].to(after[name].dtype), after[name]) for name in after)
    again = load_model(run / "model")
    assert type(again) is type(load_model(model)) and again.codec.digest == load_model(model).codec.digest


@pytest.fixture(scope="module")
def speaking(tmp_path_factory) -> Path:
    """The starter's textless model, which says words, in the layouts of TWIST and SlamKit: its ear has to hear some."""
    home = tmp_path_factory.mktemp("speaking")
    (home / "unit-codec").symlink_to(Path("starter/units").resolve())
    said = json.loads(Path("starter/unit_lm/config.json").read_text())
    state = load_file("starter/unit_lm/model.safetensors")
    shutil.copytree("starter/unit_lm", home / "TWIST-350M", ignore=shutil.ignore_patterns("elocute.json"))
    (home / "TWIST-350M/config.json").write_text(json.dumps(said | {"offset": 2}))
    (home / "slam").mkdir()
    wrapper = {"model_type": "speech_language_model", "base_config": said, "vocab_size": said["vocab_size"]}
    (home / "slam/config.json").write_text(json.dumps(wrapper | {"architectures": ["UnitLM"], "twist_init": True}))
    save_file({f"lm.{name}": tensor for name, tensor in state.items()}, home / "slam/model.safetensors")
    prompts = []
    for number in range(4):
        shutil.copyfile(f"starter/stories/prompt-{number}.wav", home / f"{number}.wav")
        prompts.append({"messages": [{"role": "user", "content": "<|audio|>"}], "audios": [f"{number}.wav"]})
    _write(home / "prompts.jsonl", prompts)
    return home


LESS = ["rounds.count=1", "rounds.candidates=3", "rounds.dev_share=0.4", "rollout.prompts_per_step=2", "steps=1",
        "checkpoint.every=1", "rollout.max_new_tokens=80", "optim.lr=0.01", "optim.warmup_steps=0"]  # fmt: skip
EARS = {
    "twist/align_slm": [],
    "slamkit/align_slm": ["listen={kind: pocketsphinx, vocabulary: starter/stories/sentences.txt}"],
}
"""The recipes' own ear once, then one that is quicker."""


@pytest.mark.parametrize("seed", ROUNDS)
def test_rounds_on_a_textless_seed(speaking, judge, tmp_path, seed, monkeypatch):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))
    for file in [*speaking.glob("*.wav"), speaking / "prompts.jsonl"]:
        shutil.copyfile(file, tmp_path / file.name)  # which pairs are held out hangs on how the run finds them
    run, model = tmp_path / "run", speaking / ROUNDS[seed]
    prompts = f"data.train={tmp_path / 'prompts.jsonl'}"
    app(words(speaking, seed, run, *LESS, *EARS[seed], prompts), standalone_mode=False)
    record = json.loads((run / "round-1/round.json").read_text())
    assert record["pairs"]["written"] > 1 and record["dev"]["step"] == 1 and record["alarms"] is not None
    assert judge.bodies and not any(sounds(body) for body in judge.bodies)  # it reads what the ear wrote down
    assert list((run / "round-1/audio").rglob("*.wav")) and (run / "round-1/train/report.html").is_file()
    trained = run / "round-1/train/model"
    before, after = weights(model), weights(trained)
    assert set(after) <= set(before) and any(not torch.equal(before[name], after[name]) for name in after)
    assert load_model(trained).bos == load_model(model).bos


def sounds(body: dict) -> int:
    """How many recordings a request holds."""
    return json.dumps(body).count('"input_audio"') // 2


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
