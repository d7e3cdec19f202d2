"""Continuations from end to end: prompts, what is heard, judges, eval.json and what is beside it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.types import AudioRef
from elocute.errors import InputError
from elocute.evaluation import unit_suites
from elocute.evaluation.continuation_suite import (
    METRICS,
    continue_all,
    judge,
    log_probs,
    measure,
    read_prompts,
    why_unscored,
)
from elocute.evaluation.unit_suites import Continuing, Listeners, evaluate_continuation
from elocute.recipe import dump_recipe, load_recipe
from elocute.recipe.ears import PocketSphinxSpec
from elocute.report.suites import CONTINUATION, suite_table
from elocute.rewards.outcome import Scored, Unavailable
from elocute.rewards.text_likelihood import TextLM
from elocute.rollout import Sampling
from tests.evaluation.command import run
from tests.evaluation.tiny_unit_lm import LoudnessCodec, record, tiny_unit_lm

EAR = PocketSphinxSpec(kind="pocketsphinx")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))


class LoudnessEar:
    """Hears a word for each third 50 ms: how loud it is. Nothing at all in what is quiet."""

    def transcribe(self, waveforms, sample_rate):
        codec, texts = LoudnessCodec(), []
        for waveform in waveforms:
            units = codec.encode(waveform, sample_rate)[::3]
            loud = units.max(initial=0) > 2
            texts.append(" ".join("quiet low mid loud".split()[unit // 6] for unit in units) if loud else "")
        return texts

    def close(self):
        pass


@pytest.fixture
def prompts(tmp_path) -> Path:
    for name, seed in [("b/one", 1), ("a", 2), ("c", 3)]:
        record(tmp_path / f"prompts/{name}.wav", seed, 1.5)
    return tmp_path / "prompts"


def continued(prompts: Path, out: Path, *, batch=2, order=1, lm=None):
    lm = lm or tiny_unit_lm()
    examples = read_prompts(prompts, 1.0, None)[::order]
    return continue_all(
        lm, EncodedAudio(lm.codec), examples, LoudnessEar(), Sampling(20, 0.8), 5, out, batch=batch
    )  # fmt: skip


def test_prompts_are_cut_before_anything_hears_them(prompts, tmp_path):
    found = continued(prompts, tmp_path / "out")
    assert [one.example.id for one in found] == ["a", "b/one", "c"]
    for index, one in enumerate(found):
        waveform, rate = load_audio(tmp_path / f"out/prompts/{index}.wav")
        assert len(waveform) == rate and one.example.audios == (AudioRef(tmp_path / f"out/prompts/{index}.wav"),)
        assert one.example.question_text == LoudnessEar().transcribe([waveform], rate)[0] != ""
        said, _ = load_audio(tmp_path / f"out/continuations/{index}.wav", silent=True)
        assert len(said) == len(one.utterance.waveform) == 800 * len(one.units) > 0
    # what comes after the first second changes nothing
    for name in ("a", "b/one", "c"):
        whole, rate = load_audio(prompts / f"{name}.wav")
        save_wav(prompts / f"{name}.wav", np.r_[whole[:rate], 0.3 * np.ones(rate)].astype(np.float32), rate)
    again = continued(prompts, tmp_path / "again")
    assert [(one.units, one.example.question_text) for one in again] == [
        (one.units, one.example.question_text) for one in found
    ]


def test_continuations_do_not_depend_on_batch_or_order(prompts, tmp_path):
    first = continued(prompts, tmp_path / "a", batch=1)
    second = continued(prompts, tmp_path / "b", batch=3, order=-1)
    by_id = {one.example.id: (one.units, one.utterance.text, one.seed) for one in second}
    assert {one.example.id: (one.units, one.utterance.text, one.seed) for one in first} == by_id


def test_a_continuation_that_the_context_cannot_hold_is_refused(prompts, tmp_path):
    with pytest.raises(InputError, match=r"\.wav:0: max_new_tokens: expected at most .*, got 20.* context holds 30"):
        continued(prompts, tmp_path / "out", lm=tiny_unit_lm(context=30))
    assert not (tmp_path / "out").exists()


def test_rows_are_prompts_too(prompts, tmp_path):
    row = {"id": "r", "messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["a.wav"]}
    (prompts / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [example] = read_prompts(prompts / "rows.jsonl", 1.0, None)
    assert example.audios[0].seconds == 1.0 and example.id == "r"
    (prompts / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    with pytest.raises(InputError, match="rows.jsonl:1: audios: expected the prompt's sound file"):
        read_prompts(prompts / "rows.jsonl", 1.0, None)
    assert [example.id for example in read_prompts(prompts, 1.0, 2)] == ["a", "b/one"]


def text_lm(folder: Path) -> Path:
    torch.manual_seed(0)
    words = ["<s>", "<unk>", "quiet", "low", "mid", "loud"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def continuing(tmp_path, monkeypatch):
    """Evaluates a tiny model's continuations with LoudnessEar: (prompts, folder's name, who else) → eval.json."""
    lm = tiny_unit_lm()
    monkeypatch.setattr(unit_suites, "load_speaker", lambda folder: lm)
    monkeypatch.setattr(unit_suites, "build_ear", lambda spec: LoudnessEar())
    (tmp_path / "model").mkdir()
    how = Continuing(Sampling(16, 0.8), seed=4, seconds=1.0)

    def evaluated(data: Path, out: str, **others) -> dict:
        prompts, listeners = read_prompts(data, 1.0, None), Listeners(EAR, **others)
        return evaluate_continuation(tmp_path / "model", data, prompts, tmp_path / out, listeners, how)

    evaluated.lm = lm
    return evaluated


def test_the_data_digest_of_rows_is_of_their_recordings_too(continuing, tmp_path):
    for name in ("here", "there"):
        record(tmp_path / name / "one.wav", 1, 1.5)
        row = {"id": "r", "messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["one.wav"]}
        (tmp_path / name / "rows.jsonl").write_text(json.dumps(row) + "\n")
    first = continuing(tmp_path / "here/rows.jsonl", "a")["data_digest"]
    assert continuing(tmp_path / "there/rows.jsonl", "b")["data_digest"] == first  # where they lie does not matter
    record(tmp_path / "here/one.wav", 2, 1.5)
    assert continuing(tmp_path / "here/rows.jsonl", "c")["data_digest"] != first


def test_gen_ppl_is_over_all_tokens(prompts, tmp_path):
    """Longer transcripts than the judges read; with the prompt, no less of them. What the context cuts is counted."""
    lm = TextLM(text_lm(tmp_path / "text-lm"))
    lm.context = 700
    found = continued(prompts, tmp_path / "out")
    words = {0: "quiet low mid " * 150, 1: "loud", 2: "mid loud " * 400}
    found = [replace(one, utterance=replace(one.utterance, text=words[i])) for i, one in enumerate(found)]
    (alone, cut_alone), (joined, cut_joined) = (log_probs(lm, found, with_prompt=flag) for flag in (False, True))
    before = [len(one.example.question_text.split()) for one in found]
    assert [len(row) for row in alone] == [450, 1, 699] and cut_alone == 1
    assert [len(row) for row in joined] == [450 + before[0], 1 + before[1], 699] and cut_joined == 1
    assert min(before) > 0


JUDGE = """
def score(prompts, completions, question_text, **columns):
    '''Counts letters: 1 to 5. Has nothing to say where it hears a low one first.'''
    texts = [completion[0]["content"] for completion in completions]
    return [None if text.startswith("low") else 1 + len(text) % 5 for text in texts]
"""


@pytest.fixture
def judged(prompts, tmp_path, continuing) -> tuple[Path, dict]:
    """A whole evaluation of 12 prompts; of the continuations some are silent, some the judge cannot score."""
    for number in range(9):
        record(prompts / f"more/{number}.wav", 10 + number, 1.2)
    (tmp_path / "judge.py").write_text(JUDGE)
    judges = tmp_path / "judge.yaml"
    sense = f"{{kind: function, name: sense, function: '{tmp_path}/judge.py:score', low: 1, high: 5}}"
    likely = f"{{kind: perplexity, name: likely, path: {text_lm(tmp_path / 'text-lm')}}}"
    judges.write_text(f"rewards: [{sense}, {likely}]\n")
    codec = continuing.lm.codec
    decode = codec.decode
    codec.decode = lambda units: decode(units) * (units[0] % 3 > 0)  # every third begins, and stays, silent
    return tmp_path / "out", continuing(prompts, "out", judges=judges, text_lm=str(tmp_path / "text-lm"))


def test_defect_align_5_empty_transcripts_and_unparsed_scores(judged):
    """An empty transcript is counted and leaves GenPPL a number; a score that is missing moves no other score."""
    out, values = judged
    lines = [json.loads(line) for line in (out / "continuations.jsonl").read_text().splitlines()]
    empty = [not line["heard"] for line in lines]
    broken = [line["broken"] is not None for line in lines]
    silent_judge = [line["heard"].startswith("low") for line in lines]
    assert 0 < sum(empty) < 12 and sum(silent_judge) > 0 and sum(broken) > 0 and len(lines) == 12
    result = values["result"]
    assert result["empty_transcripts"]["value"] == sum(empty) / 12
    assert result["gen_ppl"]["n"] == result["gen_ppl_slamkit"]["n"] == 12 - sum(empty)
    assert all(math.isfinite(entry["value"]) for entry in result.values())
    scores = []
    for line, no_speech, nothing in zip(lines, broken, silent_judge, strict=True):
        said = line["judged"]["sense"]
        if no_speech:
            assert said == {"kind": "invalid", "score": None, "reason": line["broken"]}
        elif nothing:
            assert said == {"kind": "unavailable", "score": None, "reason": "the function gave no score"}
        else:
            scores.append(1 + len(line["heard"]) % 5)
            assert (said["kind"], said["score"]) == ("scored", scores[-1])
    assert len(set(scores)) > 2  # a score at another's place would show
    assert (result["sense"]["value"], result["sense"]["n"]) == (pytest.approx(np.mean(scores)), len(scores))
    assert result["sense_unscored"]["value"] == (12 - len(scores)) / 12
    assert result["likely"]["n"] == 12 - sum(empty)  # a judge that needs the prompt's words, which the ear heard
    judge_says = values["judges"]["sense"]
    assert judge_says["range"] == [1, 5] and sum(judge_says["unscored"].values()) == 12 - len(scores)
    assert judge_says["unscored"]["unavailable: the function gave no score"] == sum(silent_judge)


def test_the_continuation_suites_file_says_how(judged, tmp_path):
    out, values = judged
    assert values == json.loads((out / "eval.json").read_text())
    assert values["seeds"] == {"sampling": 4, "bootstrap": 0}
    assert set(values["result"]) == {*METRICS, "sense", "sense_unscored", "likely", "likely_unscored"}
    assert (values["prompt_seconds"], values["temperature"], values["max_new_tokens"]) == (1.0, 0.8, 16)
    assert values["codec_digest"] == "loudness-24" and "without the prompt" in values["normalisation"]
    lines = [json.loads(line) for line in (out / "continuations.jsonl").read_text().splitlines()]
    assert all((out / line["prompt_audio"]).is_file() and (out / line["audio"]).is_file() for line in lines)
    heard = [line for line in lines if line["heard"]]
    tokens = [len(line["heard"].split()) for line in heard]
    nll = sum(line["token_nll"] * count for line, count in zip(heard, tokens, strict=True))
    assert values["result"]["gen_ppl"]["value"] == pytest.approx(math.exp(nll / sum(tokens)))
    assert values["result"]["auto_bleu_slamkit"]["value"] == pytest.approx(
        np.mean([line["auto_bleu_slamkit"] for line in heard])
    )
    assert values["result"]["units"]["value"] == pytest.approx(np.mean([len(line["units"]) for line in lines]))


def test_the_continuation_suites_file_says_who_judged(judged, tmp_path):
    _, values = judged
    likely, sense = values["judges"]["likely"], values["judges"]["sense"]
    weights = digest_folder(tmp_path / "text-lm")
    assert likely["spec"] == {"kind": "perplexity", "path": str(tmp_path / "text-lm")}
    assert likely["digests"] == {"path": weights} and values["text_lm_digest"] == weights
    assert values["text_lm_cut"] == {"gen_ppl": 0, "gen_ppl_slamkit": 0}
    assert sense["spec"]["function"] == f"{tmp_path}/judge.py:score"
    assert sense["digests"] == {"function": digest_file(tmp_path / "judge.py")}
    assert values["ear_digests"] == {}  # the package's own, see versions
    assert values["trained_against"] is None  # the model is no run's


def test_continuations_are_sampled_as_the_options_say(model, prompts, tmp_path):
    """Of one token, the likeliest, whatever the seed; and eval.json says how."""
    words, said = ("--suite", "continuation", "--data", prompts, "--rows", 1, "--max-new-tokens", 12), []
    for name, how in (("a", ("--top-k", 1, "--seed", 1)), ("b", ("--top-p", 1e-6, "--seed", 2)), ("c", ())):
        values = run(model, *words, "-o", tmp_path / name, *how)
        said.append([values[key] for key in ("temperature", "top_k", "top_p", "max_new_tokens", "seeds")])
        [line] = (tmp_path / name / "continuations.jsonl").read_text().splitlines()
        said[-1].append(json.loads(line)["units"])
    assert [one[:4] for one in said] == [[0.8, 1, 1.0, 12], [0.8, 0, 1e-6, 12], [0.8, 0, 1.0, 12]]
    assert [one[4]["sampling"] for one in said] == [1, 2, 0]
    assert said[0][5] == said[1][5] != said[2][5]


def test_the_ear_that_a_run_was_trained_by_is_written_down(model, prompts, tmp_path):
    """The starter's loop listens by PocketSphinx, the only ear that needs no download: it evaluates by leave alone."""
    recipe = dump_recipe(load_recipe("recipes/starter/align_slm.yaml", [f"model={model}"]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(recipe)
    (tmp_path / "run/model").symlink_to(model)
    words = ("--suite", "continuation", "--data", prompts, "-o", tmp_path / "out", "--rows", 1, "--max-new-tokens", 8)
    for target in ("run", "run/model"):
        with pytest.raises(
            InputError, match="recipe.yaml: 'listen' decided the run and --ear is the same; .*, or say --"
        ):
            run(tmp_path / target, *words, "--dry-run")
    values = run(tmp_path / "run", *words, "--allow-trained")
    assert values["trained_against"] == {"--ear": "listen"}


def test_every_metric_has_a_label_and_a_row(judged):
    _, values = judged
    assert set(CONTINUATION) == set(METRICS)
    assert suite_table(values).row_count == len(values["result"])


def test_a_judge_may_not_take_a_metrics_name(model, prompts, tmp_path):
    (tmp_path / "judge.yaml").write_text("rewards: [{kind: rule, name: words, column: answer}]\n")
    with pytest.raises(InputError, match="judge.yaml: rewards: 'words' already names a metric"):
        run(
            model,
            "--suite",
            "continuation",
            "--data",
            prompts,
            "-o",
            tmp_path / "o",
            "--judge",
            tmp_path / "judge.yaml",
        )


def test_without_a_prompt_to_go_by_nothing_is_judged(prompts, tmp_path):
    class Strict:
        name, low, high = "strict", 1, 5

        def __call__(self, answers):
            assert all(answer.example.question_text != "..." for answer in answers)
            return [Scored(2.0)] * len(answers)

    found = continued(prompts, tmp_path / "out")
    object.__setattr__(found[1].example, "question_text", "...")
    outcomes = judge([Strict()], found)
    nothing = Unavailable("nothing was heard in the prompt")
    assert outcomes == {"strict": [Scored(2.0), nothing, Scored(2.0)]}
    assert why_unscored(outcomes) == {"strict": {"unavailable: nothing was heard in the prompt": 1}}
    metrics = measure(found, outcomes, None, None)
    assert metrics["strict"].n == 2 and "gen_ppl" not in metrics


def test_a_model_that_says_nothing_sensible_is_measured_all_the_same(model, prompts, tmp_path):
    """The whole way on the command line, with the real recogniser: random units are no speech."""
    text_lm(tmp_path / "text-lm")
    words = ("--suite", "continuation", "--data", prompts, "-o", tmp_path / "out", "--max-new-tokens", 12)
    values = run(model, *words, "--seconds", 0.5, "--rows", 1, "--text-lm", tmp_path / "text-lm")
    assert values["result"]["broken_audio"]["value"] == values["result"]["empty_transcripts"]["value"] == 1
    for name in ("gen_ppl", "auto_bleu_slamkit", "distinct_1"):
        assert values["result"][name] == {"value": None, "n": 0, "ci95": None}
    assert values["result"]["units"] == {"value": 12.0, "n": 1, "ci95": [12.0, 12.0]}
