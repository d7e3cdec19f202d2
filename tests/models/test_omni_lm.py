"""Qwen2.5-Omni through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
from pathlib import Path

import pytest
import torch

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models.batch import make_batch, pad_tokens
from elocute.models.omni.prompt import SYSTEM
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from tests.contracts import qwen_omni
from tests.models.adapter_checks import LENGTH, TEMPERATURE, AdapterChecks, recipe_of

GROUP = 8
ENDS = [qwen_omni.END, 256, *range(100, 185)]  # bytes that no test writes
WAVS = ("heldout-sum-0000.question.wav", "heldout-odd-0000.question.wav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return qwen_omni.checkpoint(tmp_path_factory.mktemp("models") / "Qwen2.5-Omni", ends=ENDS)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, lm) -> Path:
    home = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // 2], rate)
    turns = [
        [{"role": "user", "content": "<|audio|>"}],
        [{"role": "user", "content": "hello"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<|audio|>the"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "speak<|audio|>"},
        ],
    ]
    audios = [["0.wav"], [], ["0.wav", "1.wav"]]
    answers = {
        "sft_target_text": "hel", "sft_target_units": [3, 1, 4, 1, 5], "rejected_text": "the",
        "rejected_units": [2, 7], "units_codec": lm.codec.digest,
    }  # fmt: skip
    lines = [{"messages": m, "audios": a, **answers} for m, a in zip(turns, audios, strict=True)]
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


class TestAdapter(AdapterChecks):
    still = ("thinker.audio_tower.", "thinker.visual.", "token2wav.", "thinker.lm_head.", "talker.codec_head.")

    def odd(self, lm):
        """Blanks before the word, and other ends than those that are laid out."""
        return [[*lm.tokenizer.encode("  the"), ENDS[1], 3, 1, 4, lm.layout.code_ends[1]]]

    def check_run(self, folder, adapters):
        assert {name.split(".")[2] for name in adapters} == {"thinker", "talker"}


def test_it_speaks_at_24_khz_and_some_come_to_speak(lm, groups):
    assert (lm.codec.sample_rate, lm.streams) == (24000, (1, 1))
    assert sum(not rollout.tokens.text.all() for group in groups for rollout in group) > 4


def test_the_prompt_is_laid_out_by_the_template(lm, prompts):
    heard, asked, told = (lm.tokenizer.decode(prompt.ids).replace("<|AUDIO|>", "") for prompt in prompts)
    system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    assert heard == f"{system}<|im_start|>user\n<|audio_bos|><|audio_eos|><|im_end|>\n<|im_start|>assistant\n"
    assert asked == f"{system}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert told.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|audio_bos|>")
    assert [int((prompt.ids == lm.template.audio).sum()) for prompt in prompts] == [len(p.heard) for p in prompts]
    assert [len(prompt.heard) for prompt in prompts] == [12, 0, 24]  # 25 a second of half a second, and of two


def selected(rollouts, lm, scope: str = "all"):
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])
    picked = tokens.action & {"all": tokens.action, "text": tokens.text, "speech": ~tokens.text}[scope]
    return make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], picked, "cpu")


def test_a_scope_is_scored_alone(lm, groups):
    rollouts = [rollout for group in groups for rollout in group]
    with torch.no_grad():
        for scope in ("text", "speech"):
            logp = Policy(lm)(selected(rollouts, lm, scope), TEMPERATURE)[0]
            picked = [r.logprob[r.tokens.text if scope == "text" else ~r.tokens.text] for r in rollouts]
            assert (logp - torch.cat(picked)).abs().max() < 1e-5


def test_what_was_heard_matters(lm, prompts):
    prompt = prompts[0]
    other = type(prompt)(prompt.ids, prompt.heard.flip(0) + 0.5)
    answers = [sample_groups(lm, [of], [[3]], Sampling(LENGTH, 0.9))[0][0] for of in (prompt, other)]
    assert not torch.allclose(answers[0].logprob[:1], answers[1].logprob[:1], atol=1e-4)


def test_speech_trains_the_talker_and_text_the_thinker(lm, groups):
    """What the talker reads of the thinker is detached."""
    spoken = [r for group in groups for r in group if not r.tokens.text.all()]
    for scope, moves, stays in (("speech", "talker.", "thinker."), ("text", "thinker.", "talker.")):
        for share_prompts in (True, False):
            lm.model.zero_grad()
            Policy(lm, share_prompts=share_prompts)(selected(spoken, lm, scope))[0].sum().backward()
            size = {name: float(p.grad.abs().max()) for name, p in lm.model.named_parameters()}  # every one has one
            assert not any(value for name, value in size.items() if name.startswith(stays))
            assert all(value > 0 for name, value in size.items() if name.startswith(moves))
    lm.model.zero_grad()


def test_what_was_written_is_heard_in_what_is_said(lm, prompts):
    """The talker's codes depend on the words, the one before the last as much as the first."""
    scores = []
    for text in ("the cat", "the bat", "she cat"):
        ids = [*lm.tokenizer.encode(text), qwen_omni.END, *range(1, 10), lm.layout.code_ends[0]]
        tokens = lm.layout.read(ids).tokens()
        batch = make_batch(prompts[:1], [tokens], ~tokens.text[None], "cpu")
        with torch.no_grad():
            scores.append(Policy(lm)(batch)[0])
    assert (scores[0] - scores[2])[0].abs() > 1e-4 and (scores[0] - scores[1])[5:].abs().max() > 1e-4


def test_every_cell_is_an_action_and_the_reply_says_what_it_is(lm):
    written = lm.tokenizer.encode("the cat")
    reply = lm.layout.read([*written, qwen_omni.END, 3, 1, 4, lm.layout.code_ends[1], 9, 9])
    tokens = reply.tokens()
    assert reply.done and not reply.broken and tokens.action.all() and len(tokens) == len(written) + 5
    assert tokens.text.tolist() == [True] * (len(written) + 1) + [False] * 4
    assert reply.units == [3, 1, 4] and lm.tokenizer.decode(reply.text_ids) == "the cat"


BROKEN = {
    "nothing was written that could be spoken": [qwen_omni.END],
    "code 1 is 26, no code of speech": [97, qwen_omni.END, 3, 26, 4],
    "empty audio": [97, qwen_omni.END, 27],
    "no end: the answer was cut at the longest length allowed": [97, qwen_omni.END, 3, 4],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_answers_say_why(lm, reason):
    reply = lm.layout.read(BROKEN[reason])
    reply.close()
    assert reply.broken == reason and lm.decode(BROKEN[reason]).broken == reason


def test_checkpointed_and_on_speech_alone_the_thinker_stays(folder, rows, tmp_path):
    """A full step, gradient checkpointing on: all of the talker moves, nothing else."""
    objective = "objective={mixing: {kind: fixed, value: 0}, sft: {scope: speech}, kl: {text: 0, speech: 0}}"
    more = (objective, "gradient_checkpointing=true", "optim.weight_decay=0")
    _, moved = TestAdapter().step(recipe_of(folder, rows, tmp_path / "run", "hybrid", *more))
    assert moved == {name for name in TestAdapter().tensors(folder) if name.startswith("talker.")}


def test_a_recording_is_no_target(lm, rows):
    row = {"messages": [{"role": "user", "content": "a"}], "sft_target_text": "b", "sft_target_audio": "0.wav"}
    (rows.parent / "bad.jsonl").write_text(json.dumps(row) + "\n")
    [example] = read_rows(rows.parent / "bad.jsonl")
    complaint = (
        r"bad.jsonl:1: sft_target_audio: .*no codes can be made of a recording: Qwen2.5-Omni is published without"
    )
    with pytest.raises(InputError, match=complaint) as error:
        lm.encode_target(example, EncodedAudio(lm.codec))
    assert "\n" not in str(error.value)
