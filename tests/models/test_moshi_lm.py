"""Moshi through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
from pathlib import Path

import pytest
import torch

from elocute.cli import app
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
from tests.contracts import moshi
from tests.contracts.test_csm import tensors

LENGTH, WIDTH = 8, 1 + moshi.CODEBOOKS
WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return moshi.checkpoint(tmp_path_factory.mktemp("models") / "moshiko")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // (2 + number)], rate)
    heard = {"role": "user", "content": "<|audio|>"}
    turns = [[heard], [heard], [heard, {"role": "assistant", "content": "hello<|audio|>"}, heard]]
    audios = [["0.wav"], ["2.wav"], ["0.wav", "1.wav", "2.wav"]]
    answers = {
        "sft_target_text": "the cat",
        "sft_target_audio": "1.wav",
        "rejected_text": "sat",
        "rejected_audio": "2.wav",
    }
    lines = [{"messages": m, "audios": a, **answers} for m, a in zip(turns, audios, strict=True)]
    lines[1]["sft_target_words"] = [["the", 0.1], ["cat", 0.2]]
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
    return sample_groups(lm, prompts, [[100 * p + n for n in range(4)] for p in range(3)], Sampling(LENGTH, 0.9))


def test_the_published_folder_is_enough(folder, lm):
    check_model(folder)
    assert lm.settings == {} and not (folder / "elocute.json").exists()
    assert (lm.codec.sample_rate, lm.codec.codebooks, lm.streams) == (24000, moshi.CODEBOOKS, (WIDTH,))


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


def test_answers_of_different_lengths_are_scored_as_each_alone(lm, rows, groups):
    audio, row = EncodedAudio(lm.codec), read_rows(rows)[0]
    pairs = [(groups[1][0].prompt, groups[1][0].tokens), (lm.encode_prompt(row, audio), lm.encode_target(row, audio))]
    assert len({len(tokens) for _, tokens in pairs}) == 2

    def score(pairs, share):
        action = pad_tokens([tokens for _, tokens in pairs]).action
        batch = make_batch([prompt for prompt, _ in pairs], [tokens for _, tokens in pairs], action, "cpu")
        with torch.no_grad():
            return Policy(lm, share_prompts=share)(batch)[0]

    alone = torch.cat([score([pair], True) for pair in pairs])
    assert torch.allclose(score(pairs, True), alone, atol=1e-5) and torch.allclose(
        score(pairs, False), alone, atol=1e-5
    )


def test_only_the_first_steps_acoustic_codes_are_forced(lm, groups):
    silence = torch.tensor(lm.layout.silence)
    for rollout in (rollout for group in groups for rollout in group):
        cells, action = rollout.tokens.ids.view(-1, WIDTH), rollout.tokens.action.view(-1, WIDTH)
        assert len(cells) == LENGTH and torch.equal(cells[0, 2:], silence[1:])
        assert not action[0, 2:].any() and action[0, :2].all() and action[1:].all()
        assert torch.equal(rollout.tokens.text.view(-1, WIDTH), (torch.arange(WIDTH) == 0).expand(LENGTH, -1))
        logprob = rollout.logprob.view(-1, WIDTH)
        assert (logprob[~action] == 0).all() and (logprob[action] < 0).all() and not rollout.broken
        assert len(lm.decode(rollout.tokens.ids).waveform) == 1920 * (LENGTH - 1)


def test_a_scope_moves_its_own_heads_only_and_forced_cells_move_nothing(lm, groups):
    rollouts = [rollout for group in groups for rollout in group]
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])

    def gradients(selected) -> dict[str, torch.Tensor]:
        batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], selected, "cpu")
        lm.model.zero_grad()
        Policy(lm)(batch)[0].sum().backward()
        found = {name: p.grad.clone() for name, p in lm.model.named_parameters() if p.grad is not None}
        lm.model.zero_grad()
        return {name: gradient for name, gradient in found.items() if gradient.abs().max() > 0}

    text, speech = gradients(tokens.action & tokens.text), gradients(tokens.action & ~tokens.text)
    assert "decoder.lm_head.weight" in text and not any(name.startswith("depth_decoder.") for name in text)
    assert "decoder.lm_head.weight" not in speech and "depth_decoder.lm_heads.weight" in speech
    assert any(name.startswith("decoder.model.layers") for name in speech)
    first = torch.zeros_like(tokens.action)
    first[:, :WIDTH] = tokens.action[:, :WIDTH]
    heads = gradients(first)["depth_decoder.lm_heads.weight"].abs().amax((1, 2))
    assert heads[0] > 0 and (heads[1:] == 0).all()


def test_targets_are_read_back(lm, rows):
    audio, padding, before = EncodedAudio(lm.codec), lm.layout.padding, lm.layout.before_word
    for row in read_rows(rows):
        tokens, codes = lm.encode_target(row, audio), audio.units(row.target_audio)
        answer = lm.layout.read(tokens.ids)
        assert [list(frame) for frame in answer.units] == codes.tolist() and len(answer.steps) == len(codes) + 1
        utterance = lm.decode(tokens.ids)
        assert utterance.text == "the cat" and len(utterance.waveform) == 1920 * len(codes) and not utterance.broken
        assert answer.steps[-1][1] == lm.layout.silence[0]
    the, cat = (moshi.PIECES.index(piece) for piece in ("▁the", "▁cat"))
    spread, placed, _ = (
        [step[0] for step in lm.layout.read(lm.encode_target(row, audio).ids).steps] for row in read_rows(rows)
    )
    assert spread == [the, padding, before, cat, padding, padding]
    assert placed == [before, the, cat, padding, padding, padding]


OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: all}, sft: {scope: all}, "
    "kl: {text: 0.1, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: all}",
}


@pytest.mark.parametrize(("objective", "lora"), [("hybrid", True), ("dpo", False)])
def test_one_step_moves_what_should_move_and_is_saved_as_published(folder, rows, tmp_path, objective, lora):
    judge = "{kind: function, function: 'tests/models/test_moshi_lm.py:length', low: 0, high: 100}"
    how = ["lora={rank: 4}", "gradient_checkpointing=true"] if lora else ["lora=null", "freeze=['^embed_tokens']"]
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
            f"objective={OBJECTIVES[objective]}", f"rewards=[{'' if objective == 'dpo' else judge}]", *how,
            "rollout.group_size=2", "rollout.prompts_per_step=3", f"rollout.max_new_tokens={LENGTH}",
            "optim.warmup_steps=0", "optim.lr=0.01", "reward_mix.invalid_penalty=0",
        ],
    )  # fmt: skip
    trainer = Trainer(recipe)
    before = {name: tensor.clone() for name, tensor in trainer.lm.plain_model().state_dict().items()}
    assert trainer.train()
    trainable = {name for name, p in trainer.lm.model.named_parameters() if p.requires_grad}
    merged = trainer.lm.plain_model().state_dict()
    moved = {name for name in before if not torch.equal(before[name], merged[name])}
    if lora:
        assert all("lora_" in name and ".decoder.model.layers." in name for name in trainable)
        assert moved and all(name.startswith("decoder.model.layers.") for name in moved)
    else:
        assert {
            "decoder.lm_head.weight",
            "depth_decoder.lm_heads.weight",
            "depth_decoder.input_projections.weight",
        } <= moved
        assert not any(name.startswith("embed_tokens") for name in moved)
    trainer.save_model()
    trainer.close()
    saved = tmp_path / "run/model"
    again = load_model(saved).model.state_dict()
    assert merged.keys() == again.keys() and all(torch.allclose(merged[name], again[name]) for name in merged)
    old, new = tensors(folder), tensors(saved)
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old if n.startswith("audio_encoder."))


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_elocute_sample_takes_it(folder, rows, tmp_path):
    words = ["sample", "recipes/starter/wavalign.yaml", f"model={folder}", f"rollout.max_new_tokens={LENGTH}",
             "--data", str(rows), "-n", "2", "-o", str(tmp_path / "out")]  # fmt: skip
    app(words, standalone_mode=False)
    lines = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    assert [len(line["output"]) for line in lines] == [2, 2, 2]


USER, ANSWER = {"role": "user", "content": "<|audio|>"}, {"sft_target_audio": "0.wav", "sft_target_text": "the cat"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [USER | {"content": "hello"}]}, "messages: expected speech and no text from the user"),
        (
            {"messages": [{"role": "system", "content": "a"}, USER], "audios": ["0.wav"]},
            "expected none from the system",
        ),
        ({"messages": [USER], "audios": ["0.wav"], "sft_target_audio": "0.wav"}, "sft_target_text: expected"),
        ({"messages": [USER], "audios": ["0.wav"], **ANSWER, "sft_target_text": "hello " * 30}, "30 tokens, and"),
        (
            {"messages": [USER], "audios": ["0.wav"], **ANSWER, "sft_target_words": [["a", 0]]},
            "sft_target_words: expec",
        ),
        ({"messages": [USER] * 60, "audios": ["0.wav"] * 60}, "too long"),
    ],
)
def test_what_it_has_no_place_for_is_one_line(lm, rows, row, complaint):
    (rows.parent / "bad.jsonl").write_text(json.dumps(row) + "\n")
    [example], audio = read_rows(rows.parent / "bad.jsonl"), EncodedAudio(lm.codec)
    with pytest.raises(InputError, match=rf"bad.jsonl:1: .*{complaint}") as error:
        lm.encode_prompt(example, audio)
        lm.encode_target(example, audio)
    assert "\n" not in str(error.value)
