"""VITA-Audio through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
import shutil
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
from tests.contracts import glm4voice, vita_audio

LENGTH = 14
UNITS = 48
WAVS = ("heldout-sum-0000.question.wav", "heldout-sum-0000.answer.wav", "heldout-odd-0000.question.wav")
MAKERS = {
    "plus-vanilla": lambda place: vita_audio.plus(place, n_mtp=0, n_units=UNITS),
    "boost": lambda place: vita_audio.boost(place, n_units=UNITS),
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    glm4voice.decoder(home / "glm-4-voice-decoder")
    return MAKERS[request.param](home / "VITA-Audio")


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
    seeds = [[10 * p + n for n in range(3)] for p in range(len(prompts))]
    return sample_groups(lm, prompts, seeds, Sampling(LENGTH, 0.9))


def test_the_published_folder_is_enough(folder, lm):
    check_model(folder)
    assert lm.settings == {} and not (folder / "elocute.json").exists()
    assert (lm.codec.sample_rate, lm.codec.n_units) == (22050, UNITS)


def test_what_is_heard_stands_at_its_places(lm, prompts):
    for prompt, heard in zip(prompts, (1, 0, 2), strict=True):
        text = lm.tokenizer.decode(prompt.ids)
        assert text.count("<|begin_of_audio|>") == heard and text.endswith("<|im_start|>assistant\n")
        if lm.ears is not None and heard:
            assert int((prompt.ids == lm.tokens.context).sum()) == len(prompt.states)
        else:
            assert prompt.states is None


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
    if lm.ears is None:
        pytest.skip("Boost hears units, which stand in the ids")
    prompt = prompts[0]
    other = type(prompt)(prompt.ids, prompt.states.flip(0) + 0.5)
    answers = [sample_groups(lm, [of], [[3]], Sampling(LENGTH, 0.9))[0][0] for of in (prompt, other)]
    assert not torch.allclose(answers[0].logprob[:1], answers[1].logprob[:1], atol=1e-3)


def test_targets_are_read_back(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    answer = lm.layout.read(tokens.ids)
    answer.close()
    assert not answer.broken and answer.units == audio.units(row.target_audio).tolist()
    assert lm.tokenizer.decode(answer.text_ids) == "hel\n"
    assert tokens.action.all() and torch.equal(tokens.text, tokens.ids < lm.tokens.begin)
    utterance = lm.decode(tokens.ids)
    assert utterance.text == "hel" and len(utterance.waveform) > 0 and not utterance.broken


def test_padding_of_the_vocabulary_breaks_an_answer(lm):
    answer = lm.layout.read([5, lm.tokens.size, 6])
    assert answer.broken == "token 1 is padding of the vocabulary" and answer.text_ids == [5]


OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: text}, sft: {scope: all}, "
    "kl: {text: 0.1, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: all}",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_lora_moves_the_adapter_and_is_saved_as_published(folder, rows, tmp_path, objective):
    judge = "{kind: function, function: 'tests/models/test_vita_lm.py:length', low: 0, high: 100}"
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
    still = [n for n in before if n.startswith(("model.audio_", "mtp_"))]
    assert all(torch.equal(before[name], after[name]) for name in still)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_what_is_missing_or_misplaced_is_one_line(lm, folder, rows, tmp_path):
    alone = tmp_path / "VITA-Audio"
    shutil.copytree(folder, alone)
    with pytest.raises(InputError, match="glm-4-voice-tokenizer: expected glm-4-voice-tokenizer there"):
        check_model(alone)
    turns = [{"role": "user", "content": "<|im_end|>"}]
    (rows.parent / "bad.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(InputError, match=r"bad.jsonl:1: messages: the text holds the control token '<\|im_end\|>'"):
        lm.encode_prompt(read_rows(rows.parent / "bad.jsonl")[0], EncodedAudio(lm.codec))
