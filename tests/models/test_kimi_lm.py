"""Kimi-Audio through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
import shutil
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
from elocute.models.kimi import load_network
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import glm4voice, kimi, kimi_sound

LENGTH = 14
WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    return kimi_sound.build(kimi.build(home / "Kimi-Audio-7B-Instruct"))


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
            {"role": "user", "content": "<|audio|>the"},
            {"role": "assistant", "content": "hello<|audio|>"},
            {"role": "user", "content": "speak<|audio|>"},
        ],
    ]
    audios = [["0.wav"], [], ["0.wav", "1.wav", "2.wav"]]
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
    seeds = [[10 * p + n for n in range(3)] for p in range(len(prompts))]
    return sample_groups(lm, prompts, seeds, Sampling(LENGTH, 0.9))


def test_the_published_folder_is_enough(folder, lm):
    check_model(folder)
    assert lm.settings == {} and not (folder / "elocute.json").exists()
    assert (lm.codec.sample_rate, lm.codec.n_units) == (24000, kimi.N_CODES)


def test_what_is_heard_stands_in_both_forms(lm, rows, prompts):
    first = prompts[0]
    assert first.ids.shape == (len(first), 2) and int(first.continuous.sum()) == len(first.features) == 7
    assert torch.equal(first.features, lm.whisper.encode(*load_audio(read_rows(rows)[0].audios[0].path))[:7])
    assert not prompts[1].continuous.any() and len(prompts[1].features) == 0
    # What the assistant itself said earlier is no heard speech.
    assert int(prompts[2].continuous.sum()) == len(prompts[2].features) == 14


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


def test_forced_cells_are_no_actions(lm, groups):
    marks = lm.layout.marks
    for rollout in (rollout for group in groups for rollout in group):
        cells = rollout.tokens.ids.view(-1, 2)
        action = rollout.tokens.action.view(-1, 2)
        assert (cells[: marks.delay, 0] == marks.blank).all() and not action[: marks.delay, 0].any()
        assert action[marks.delay :, 0].all()
        assert torch.equal(rollout.tokens.text.view(-1, 2), torch.tensor([[False, True]]).expand(len(cells), 2))
        assert (rollout.logprob.view(-1, 2)[~action] == 0).all() and (rollout.logprob.view(-1, 2)[action] < 0).all()
        ended = (cells[:, 1] == marks.text_eos).nonzero()
        if len(ended):
            assert not action[int(ended[0]) + 1 :, 1].any()


def test_a_scope_moves_its_own_head_only(lm, groups):
    rollouts = [rollout for group in groups for rollout in group]
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])
    for scope, moved, still in ((tokens.text, "lm_head", "mimo_output"), (~tokens.text, "mimo_output", "lm_head")):
        batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], tokens.action & scope, "cpu")
        lm.model.zero_grad()
        Policy(lm)(batch)[0].sum().backward()
        assert getattr(lm.model, moved).weight.grad.abs().max() > 0
        gradient = getattr(lm.model, still).weight.grad
        assert gradient is None or gradient.abs().max() == 0
    lm.model.zero_grad()


def test_targets_are_read_back(lm, rows):
    row = read_rows(rows)[0]
    audio = EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    reply = lm.layout.read(tokens.ids)
    assert lm.tokenizer.decode(reply.text_ids) == "hel" and not reply.broken
    assert reply.units == audio.units(row.target_audio).tolist()
    utterance = lm.decode(tokens.ids)
    assert utterance.text == "hel" and len(utterance.waveform) == 1920 * len(reply.units) and not utterance.broken


OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: text}, sft: {scope: all}, "
    "kl: {text: 0.1, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: all}",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_lora_moves_the_adapter_and_is_saved_as_published(folder, rows, tmp_path, objective):
    reward = "[]" if objective == "dpo" else "[{kind: function, function: 'tests/models/test_kimi_lm.py:length', "
    reward += "" if objective == "dpo" else "low: 0, high: 100}]"
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
            f"objective={OBJECTIVES[objective]}", f"rewards={reward}", "lora={rank: 4}", "rollout.group_size=2",
            "rollout.prompts_per_step=3", f"rollout.max_new_tokens={LENGTH}", "optim.warmup_steps=0", "optim.lr=0.01",
            "reward_mix.invalid_penalty=0",
        ],
    )  # fmt: skip
    trainer = Trainer(recipe)
    assert trainer.train()
    moved = {name: p for name, p in trainer.lm.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in moved) and any("mimo_layers" in name for name in moved)
    assert max(float(p.detach().abs().max()) for name, p in moved.items() if "lora_B" in name) > 0
    trainer.save_model()
    trainer.close()
    saved = tmp_path / "run/model"
    again = load_model(saved)
    before, after = kimi.tensors(folder), kimi.tensors(saved)
    assert {n for n in before if not n.endswith("inv_freq")} == set(after) - {n for n in after if "inv_freq" in n}
    merged = trainer.lm.plain_model().state_dict()
    assert all(torch.allclose(merged[name], tensor) for name, tensor in again.model.state_dict().items())
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in after)
    assert (saved / "whisper-large-v3/model.safetensors").is_file() and load_network(saved)


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_elocute_sample_takes_it(folder, rows, tmp_path):
    words = ["sample", "recipes/starter/wavalign.yaml", f"model={folder}", f"rollout.max_new_tokens={LENGTH}",
             "--data", str(rows), "-n", "2", "-o", str(tmp_path / "out")]  # fmt: skip
    app(words, standalone_mode=False)
    lines = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    assert [len(line["output"]) for line in lines] == [2, 2, 2]


def test_what_is_missing_is_one_line(folder, tmp_path):
    alone = tmp_path / "Kimi-Audio-7B-Instruct"
    shutil.copytree(folder, alone)
    with pytest.raises(InputError, match="glm-4-voice-tokenizer: expected glm-4-voice-tokenizer there"):
        check_model(alone)
    (alone / "elocute.json").write_text(json.dumps({"kind": "kimi_audio", "speech_tokenizer": str(tmp_path / "no")}))
    with pytest.raises(InputError, match="no: expected glm-4-voice-tokenizer there"):
        load_model(alone)
