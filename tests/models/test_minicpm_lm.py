"""MiniCPM-o 2.6 through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch, pad_tokens
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import minicpm_o

LENGTH = 14
WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("models") / "MiniCPM-o-2_6")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // 2], rate)
    turns = [
        [{"role": "user", "content": "<|audio|>"}],
        [{"role": "user", "content": "hello"}],
        [
            {"role": "system", "content": "Your Name: Luke"},
            {"role": "user", "content": "<|audio|>the"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "speak<|audio|>"},
        ],
    ]
    audios = [["0.wav"], [], ["0.wav", "2.wav"]]
    answers = {"sft_target_text": "hel", "sft_target_audio": "1.wav", "rejected_text": "the", "rejected_audio": "2.wav"}
    lines = [{"messages": m, "audios": a, **answers} for m, a in zip(turns, audios, strict=True)]
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def prompts(lm, rows):
    audio = EncodedAudio(lm.codec)
    return [lm.encode_prompt(row, audio) for row in read_rows(rows)]


@pytest.fixture(scope="module")
def groups(lm, prompts):
    seeds = [[100 * p + n for n in range(16)] for p in range(len(prompts))]
    found = sample_groups(lm, prompts, seeds, Sampling(LENGTH, 0.9))
    assert sum(not rollout.tokens.text.all() for group in found for rollout in group) > 1  # some come to speak
    return found


def test_the_published_folder_is_enough(folder, lm):
    check_model(folder)
    assert lm.settings == {} and not (folder / "elocute.json").exists()
    assert (lm.codec.sample_rate, lm.streams) == (24000, (1, 4))


@pytest.mark.parametrize("share_prompts", [True, False])
def test_score_is_sample(lm, groups, share_prompts):
    rollouts = [rollout for group in groups for rollout in group]
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], tokens.action, "cpu")
    with torch.no_grad():
        logp = Policy(lm, share_prompts=share_prompts)(batch, 0.9)[0]
    sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
    assert (logp - sampled).abs().max() < 1e-5


def test_an_answer_does_not_depend_on_its_company(lm, prompts, groups):
    for prompt, group in zip(prompts, groups, strict=True):
        for rollout in group:
            [[alone]] = sample_groups(lm, [prompt], [[rollout.seed]], Sampling(LENGTH, 0.9))
            assert torch.equal(alone.tokens.ids, rollout.tokens.ids)
            assert torch.allclose(alone.logprob, rollout.logprob, atol=1e-5)


def test_what_was_heard_matters(lm, prompts):
    prompt = prompts[0]
    other = type(prompt)(prompt.ids, tuple(tuple(mel.flip(1) + 0.5 for mel in pieces) for pieces in prompt.mels))
    answers = [sample_groups(lm, [of], [[3]], Sampling(LENGTH, 0.9))[0][0] for of in (prompt, other)]
    assert not torch.allclose(answers[0].logprob[:1], answers[1].logprob[:1], atol=1e-4)


def test_the_voice_is_sampled_and_its_four_streams_are_actions(lm, prompts):
    """What RLAIF-SPA's released code has not: prosody is decided by cells that can be trained."""
    written = lm.tokenizer.encode("the cat<|tts_eos|><|im_end|>", add_special_tokens=False)
    answer = lm.layout.read([*written, *range(8), 1, lm.layout.end, 2, 3, 9, 9])
    tokens = answer.tokens()
    assert answer.done and len(tokens) == len(written) + 12 and tokens.action.all()
    assert tokens.text.tolist() == [True] * len(written) + [False] * 12
    assert answer.units == [(0, 1, 2, 3), (4, 5, 6, 7)] and lm.tokenizer.decode(answer.text_ids) == "the cat"
    batch = make_batch(prompts[:1], [tokens], tokens.action[None] & ~tokens.text[None], "cpu")
    lm.model.zero_grad()
    Policy(lm)(batch)[0].sum().backward()
    heads = [head.parametrizations.weight.original1.grad for head in lm.model.tts.head_code]
    assert all(gradient.abs().max() > 0 for gradient in heads)
    assert lm.head().weight.grad is None or lm.head().weight.grad.abs().max() == 0
    assert lm.model.llm.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0  # by the voice
    lm.model.zero_grad()


def test_an_answer_without_words_is_broken(lm):
    answer = lm.layout.read(lm.tokenizer.encode("<|tts_eos|><|im_end|>", add_special_tokens=False))
    assert answer.done and answer.broken == "nothing was written that could be spoken"


def test_targets_are_read_back(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    answer = lm.layout.read(tokens.ids)
    answer.close()
    assert not answer.broken and answer.units == [tuple(f) for f in audio.units(row.target_audio).tolist()]
    assert lm.tokenizer.decode(answer.text_ids) == "hel"
    utterance = lm.decode(tokens.ids)
    assert utterance.text == "hel" and len(utterance.waveform) == 512 * len(answer.units) and not utterance.broken


OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: text}, sft: {scope: all}, "
    "kl: {text: 0.1, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: all}",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_lora_moves_the_adapter_and_is_saved_as_published(folder, rows, tmp_path, objective):
    judge = "{kind: function, function: 'tests/models/test_minicpm_lm.py:length', low: 0, high: 100}"
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
            f"objective={OBJECTIVES[objective]}", f"rewards=[{'' if objective == 'dpo' else judge}]", "lora={rank: 4}",
            "rollout.group_size=2", "rollout.prompts_per_step=3", f"rollout.max_new_tokens={LENGTH}",
            "optim.warmup_steps=0", "optim.lr=0.01", "reward_mix.invalid_penalty=0",
        ],
    )  # fmt: skip
    trainer = Trainer(recipe)
    assert trainer.train()
    moved = {name: p for name, p in trainer.lm.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in moved)
    assert max(float(p.detach().abs().max()) for name, p in moved.items() if "lora_B" in name) > 0
    trainer.save_model()
    trainer.close()
    saved = tmp_path / "run/model"
    again = load_model(saved)
    merged = trainer.lm.plain_model().state_dict()
    assert all(torch.allclose(merged[name], tensor) for name, tensor in again.model.state_dict().items())
    before, after = weights(folder), weights(saved)
    assert set(before) == set(after) and any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(("vpm.", "tts.dvae.")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_control_tokens_are_refused(lm, rows):
    turns = [{"role": "user", "content": "<|im_end|>"}]
    (rows.parent / "bad.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(InputError, match=r"bad.jsonl:1: messages: the text holds the control token '<\|im_end\|>'"):
        lm.encode_prompt(read_rows(rows.parent / "bad.jsonl")[0], EncodedAudio(lm.codec))
