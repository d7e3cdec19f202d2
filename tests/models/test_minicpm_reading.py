"""MiniCPM-o 2.6 reads labelled sentences aloud, as in RLAIF-SPA: what it writes sampled, or the sentence itself."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from elocute.cli import app
from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.types import Example, Message
from elocute.errors import InputError
from elocute.models import check_model, load_model, load_template, reads_aloud
from elocute.models.batch import make_batch, pad_tokens
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.rollout.speak import speak
from elocute.training.policy import Policy
from elocute.training.run import run
from elocute.training.trainer import Trainer
from tests.contracts import minicpm_o
from tests.evaluation.reading_files import MEASURED
from tests.models.adapter_checks import comes_back
from tests.rewards import tiny_models

TEXT = "the cat sat on the mat"
HAPPY = {"speed": "Fast", "emotion": "Happy"}
LENGTH = 24
END = "<|tts_eos|><|im_end|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The published folder, and one whose elocute.json has the text forced."""
    home = tmp_path_factory.mktemp("models")
    sampled = minicpm_o.checkpoint(home / "MiniCPM-o-2_6")
    forced = home / "forced"
    shutil.copytree(sampled, forced)
    (forced / "elocute.json").write_text('{"kind": "minicpm_o", "text": "forced", "schema": "paper"}')
    return {"sampled": sampled, "forced": forced}


@pytest.fixture(scope="module")
def lms(folders):
    return {name: load_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    waveform, rate = load_audio("starter/audio/heldout-sum-0000.answer.wav")
    save_wav(home / "said.wav", waveform[: rate // 2], rate)
    texts = {TEXT: HAPPY, "hello world": {"speed": "Slow"}, "the mat": {}}
    lines = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": text}],
            "labels": labels,
            "sft_target_audio": "said.wav",
        }
        for n, (text, labels) in enumerate(texts.items())
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


def row(text=TEXT, labels=None, **fields) -> Example:
    columns = {} if labels is None else {"labels": labels}
    return Example("x", (Message("user", text),), columns=columns, file="rows.jsonl", line=7, **fields)


def rollouts_of(lm, rows: Path, size: int = 6):
    prompts = [lm.encode_prompt(example, EncodedAudio(lm.codec)) for example in read_rows(rows)]
    seeds = [[10 * p + n for n in range(size)] for p in range(len(prompts))]
    return [rollout for group in sample_groups(lm, prompts, seeds, Sampling(LENGTH, 0.9)) for rollout in group]


def elocute(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


# what goes in


@pytest.mark.parametrize("name", ["sampled", "forced"])
def test_a_prompt_is_a_turn_in_the_schemas_words(lms, name):
    lm = lms[name]
    asked = "(emotion: Happy, speed: Fast) the cat sat on the mat"
    expected = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>"
    prompt = lm.encode_prompt(row(labels=HAPPY), None)
    assert lm.tokenizer.decode(prompt.ids) == expected
    assert (prompt.given is None) == (name == "sampled")
    if name == "forced":
        assert lm.tokenizer.decode(prompt.given) == TEXT + END
    bare = lm.encode_prompt(row(labels={}), None)
    assert lm.tokenizer.decode(bare.ids) == expected.replace(asked, TEXT)


def test_a_row_without_labels_is_a_question(lms, folders):
    assert lms["forced"].encode_prompt(row(), None).given is None
    assert reads_aloud(folders["forced"], [row(labels={}), row(labels=HAPPY)])
    assert not reads_aloud(folders["forced"], [row(labels=HAPPY), row()]) and not reads_aloud(folders["forced"])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (row(labels={"emotion": "happy"}), "rows.jsonl:7: labels.emotion: no such label: 'happy'; nearest: Happy"),
        (row(" ", {}), "rows.jsonl:7: text: expected a text to speak, got nothing"),
        (row("a<|tts_eos|>", {}), "rows.jsonl:7: text: the text holds the control token '<|tts_eos|>'"),
        (row(labels="Happy"), 'rows.jsonl:7: labels: expected {"dimension": "label"}, got "Happy"'),
    ],
)
def test_what_cannot_be_read_is_one_line(lms, folders, example, said):
    for attempt in (
        lambda: lms["sampled"].encode_prompt(example, None),
        lambda: check_model(folders["sampled"], [example]),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_settings_that_make_no_sense_are_one_line(folders, tmp_path):
    folder = tmp_path / "MiniCPM-o-2_6"
    shutil.copytree(folders["sampled"], folder)
    for settings, said in [
        ({"text": "given"}, "elocute.json: text: expected sampled or forced, got 'given'"),
        ({"words": 1}, "elocute.json: words: unknown key"),
        ({"schema": 3}, "elocute.json: schema: expected a file or paper or rlaif_spa, got 3"),
        ({"schema": "mine.yaml"}, "mine.yaml"),
    ]:
        (folder / "elocute.json").write_text(json.dumps({"kind": "minicpm_o"} | settings))
        for attempt in (check_model, load_template):
            with pytest.raises(InputError) as caught:
                attempt(folder)
            assert said in str(caught.value) and "\n" not in str(caught.value)


# what is an action


@pytest.mark.parametrize("name", ["sampled", "forced"])
def test_score_is_sample(lms, rows, name):
    lm, rollouts = lms[name], rollouts_of(lms[name], rows)
    assert sum(not rollout.tokens.text.all() for rollout in rollouts) > 1  # some come to speak
    for rollout in rollouts:
        tokens = rollout.tokens
        assert torch.equal(tokens.action, torch.ones_like(tokens.text) if name == "sampled" else ~tokens.text)
        assert (rollout.logprob[~tokens.action] == 0).all() and (rollout.logprob[tokens.action] < 0).all()
        if name == "forced":
            assert torch.equal(tokens.ids[tokens.text], rollout.prompt.given)
    padded = pad_tokens([rollout.tokens for rollout in rollouts])
    for share_prompts in (True, False):
        batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], padded.action, "cpu")
        with torch.no_grad():
            logp = Policy(lm, share_prompts=share_prompts)(batch, 0.9)[0]
        sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
        assert (logp - sampled).abs().max() < 1e-5


def test_how_a_text_is_read_does_not_depend_on_what_else_is(lms):
    asked = [(TEXT, {}), ("hello", HAPPY), ("the cat", {"speed": "Slow"})]
    together = speak(lms["forced"], asked, seed=1, max_new_tokens=LENGTH)
    alone = [speak(lms["forced"], [one], seed=1, max_new_tokens=LENGTH)[0] for one in asked]
    assert [one.units for one in together] == [one.units for one in alone]
    assert [one.utterance.text for one in together] == [text for text, _ in asked]
    assert together[0].units != speak(lms["forced"], [(TEXT, HAPPY)], seed=1, max_new_tokens=LENGTH)[0].units


def test_forced_text_has_no_gradient_of_its_own(lms, rows):
    """All that was sampled is trained, and nothing of it hangs on the LLM's head: only the voice and the codes do."""
    lm, rollouts = lms["forced"], rollouts_of(lms["forced"], rows)
    action = pad_tokens([rollout.tokens for rollout in rollouts]).action
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], action, "cpu")
    lm.model.zero_grad()
    Policy(lm)(batch)[0].sum().backward()
    assert lm.head().weight.grad is None or lm.head().weight.grad.abs().max() == 0
    assert lm.model.tts.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert lm.model.llm.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0  # by the voice
    lm.model.zero_grad()


@pytest.mark.parametrize("name", ["sampled", "forced"])
def test_what_was_sampled_comes_back_from_its_row(lms, rows, tmp_path, name):
    """Whatever the LLM wrote, where it writes; only what was asked for, where the text is forced."""
    lm = lms[name]
    given = lm.encode_prompt(read_rows(rows)[0], None).given
    frames = [*range(8), 1, lm.layout.end, 2, 3]
    answers = [lm.layout.read([*lm.template.written(text), *frames], given) for text in (TEXT, "the mat")]
    asked, other = (SimpleNamespace(tokens=answer.tokens(), seed=0, truncated=False) for answer in answers)
    assert comes_back(lm, rows, [asked], tmp_path) == 1
    if name == "sampled":
        assert comes_back(lm, rows, [other], tmp_path) == 1
        return
    with pytest.raises(InputError, match="sft_target_tokens: expected a whole answer"):
        comes_back(lm, rows, [other], tmp_path)


@pytest.mark.parametrize("name", ["sampled", "forced"])
def test_a_target_speaks_the_text_or_says_what_it_wrote(lms, rows, name):
    lm, audio = lms[name], EncodedAudio(lms[name].codec)
    ref = read_rows(rows)[0].target_audio
    tokens = lm.encode_target(row(labels=HAPPY, target_audio=ref), audio)
    answer = lm.layout.read(tokens.ids)
    assert lm.tokenizer.decode(answer.text_ids) == TEXT and len(answer.units) == len(audio.units(ref))
    assert tokens.action[tokens.text].any() == (name == "sampled") and tokens.action[~tokens.text].all()
    other = row(labels=HAPPY, rejected_text="hello", rejected_audio=ref)
    if name == "forced":
        with pytest.raises(
            InputError, match="^rows.jsonl:7: rejected_text: expected the text to speak, which is forced$"
        ):
            lm.encode_rejected(other, audio)
    else:
        assert lm.tokenizer.decode(lm.layout.read(lm.encode_rejected(other, audio).ids).text_ids) == "hello"


# in use


@pytest.fixture(scope="module")
def talkative(folders, tmp_path_factory) -> dict[str, Path]:
    """Folders with a schema of their own, whose answers often come to their end."""
    home = tmp_path_factory.mktemp("ends")
    lm = load_model(folders["sampled"])
    with torch.no_grad():
        lm.head().weight[lm.control.im_end] *= 3  # much likelier at some places, and less at others
        for head in lm.model.tts.head_code:
            head.parametrizations.weight.original0[lm.layout.end] *= 3
    for name in folders:
        lm.save(home / name)
        said = {"kind": "minicpm_o", "text": name, "schema": "schema.yaml"}
        (home / name / "elocute.json").write_text(json.dumps(said))
        (home / name / "schema.yaml").write_text(MEASURED)
    return {name: home / name for name in folders}


def test_speak_with_labels(talkative, tmp_path, capsys):
    out = tmp_path / "happy.wav"
    elocute("speak", talkative["forced"], "--text", TEXT, "--emotion", "Happy", "--speed=Fast", "-o", out, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["written"], found["labels"]) == (TEXT, {"emotion": "Happy", "speed": "Fast"})
    waveform, rate = load_audio(out, silent=True)
    assert rate == 24000 and len(waveform) == 512 * found["units"] > 0
    with pytest.raises(InputError, match="no such option: --mood; this model's labels: --emotion, --speed"):
        elocute("speak", talkative["forced"], "--text", TEXT, "--mood", "Happy", "-o", out)


def recipe_of(model: Path, rows: Path, run_dir: Path, *more: str):
    given = [f"model={model}", f"data.train={rows}", f"run_dir={run_dir}", "steps=1", "report=false"]
    given += ["rollout.group_size=5", "rollout.prompts_per_step=1", "rollout.max_new_tokens=50", "optim.warmup_steps=0"]
    given += ["evaluation={temperature: 1.0}", "rollout.temperature=1.0", "optim.lr=0.01"]
    given += ["objective.policy_gradient.blame=null"]
    return load_recipe("recipes/starter/rlaif_spa.yaml", [*given, "data.eval=null", *more])


def labelled(rows: Path, place: Path) -> Path:
    line = json.loads(rows.read_text().splitlines()[0]) | {"sft_target_audio": str(rows.parent / "said.wav")}
    place.write_text(json.dumps(line) + "\n")
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_run_of_rlaif_spa_trains_the_voice_and_reads_aloud(talkative, rows, tmp_path):
    """Heard by a recogniser, measured, judged and trained: the very codes that became sound."""
    data, out, model = labelled(rows, tmp_path / "rows.jsonl"), tmp_path / "run", talkative["forced"]
    ear, schema = tiny_models.ctc(tmp_path / "ear"), model / "schema.yaml"
    rewards = [
        {"kind": "asr", "ear": {"kind": "transformers", "path": str(ear)}, "form": "linear", "weight": 0.3},
        {"kind": "prosody", "labels": str(schema), "weight": 0.7},
        {"kind": "guard"},
    ]
    more = [f"rewards={json.dumps(rewards)}", f"data.eval={data}"]
    more += ["evaluation.ear={kind: pocketsphinx, vocabulary: starter/answers.txt}"]
    assert run(recipe_of(model, data, out, *more))
    [step] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert step["pg/tokens"] > 0 and step["grad_norm"] > 0
    before, after = weights(model), weights(out / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after) and any(name.startswith("tts.model.layers.") for name in moved)
    assert all(re.fullmatch(r"(llm\.model|tts\.model)\.layers\..*_proj\.weight", name) for name in moved)
    evaluated = json.loads((out / "eval.json").read_text())
    assert evaluated["before"]["wer"]["n"] == 1 and "broken_audio" in evaluated["after"]
    assert len((out / "samples/combinations-after.jsonl").read_text().splitlines()) == 9
    template = load_template(out / "model")
    assert template.forced and template.schema == load_template(model).schema


def test_what_the_llm_writes_is_trained_too_where_it_is_sampled(talkative, rows, tmp_path):
    judge = "[{kind: function, function: 'tests/models/test_minicpm_reading.py:length', low: 0, high: 100}]"
    more = [f"rewards={judge}", "objective.policy_gradient.scope=text", "objective.kl.speech=0"]
    trainer = Trainer(recipe_of(talkative["sampled"], labelled(rows, tmp_path / "rows.jsonl"), tmp_path / "run", *more))
    assert trainer.train()
    moved = {name for name, p in trainer.lm.model.named_parameters() if "lora_B" in name and p.abs().max() > 0}
    trainer.close()
    assert any("llm.model.layers" in name for name in moved) and not any(
        "tts" in name or "apm" in name for name in moved
    )


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_elocute_eval_reads_aloud(talkative, rows, tmp_path, capsys):
    words = [
        "--suite",
        "reading",
        "--data",
        rows,
        "--rows",
        2,
        "--max-new-tokens",
        60,
        "-o",
        tmp_path / "out",
        "--json",
    ]
    elocute("eval", talkative["forced"], *words)
    found = json.loads(capsys.readouterr().out)
    assert found["suite"] == "reading" and found["result"]["wer"]["n"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out/result.jsonl").read_text().splitlines()]
    assert [line["question_text"] for line in lines] == [TEXT, "hello world"] and lines[0]["labels"] == HAPPY
