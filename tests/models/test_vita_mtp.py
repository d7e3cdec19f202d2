"""VITA-Audio samples through its multi-token prediction: every cell is scored by the very head that said it."""

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
from elocute.models.vita import is_mtp
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import glm4voice, vita_audio
from tests.contracts.vita_naive import NaiveVita

LENGTH, UNITS, TEMPERATURE = 20, 48, 0.9
MODES = {"published": (None, [1, 10, 4, 10]), "balance": ("balance", [1, 4, 3, 8, 4, 10]), "own": ([1, 2, 2, 1],) * 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    glm4voice.decoder(home / "glm-4-voice-decoder")
    vita_audio.boost(home / "boost", n_units=UNITS)
    vita_audio.plus(home / "plus", n_mtp=2, n_units=UNITS)
    vita_audio.plus(home / "vanilla", n_mtp=0, n_units=UNITS)
    return home


def with_mode(folder: Path, mode) -> Path:
    """The folder, sampled from by a mode: None, as it was published."""
    (folder / "elocute.json").unlink(missing_ok=True)
    if mode is not None:
        (folder / "elocute.json").write_text(json.dumps({"kind": "vita_audio", "mtp": mode}))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    waveform, rate = load_audio("starter/audio/heldout-sum-0000.question.wav")
    save_wav(home / "0.wav", waveform[: rate // 2], rate)
    asked = [("hello", []), ("<|audio|>", ["0.wav"])]
    lines = [
        {"messages": [{"role": "user", "content": text}], "audios": audios, "sft_target_text": "hello you",
         "sft_target_audio": "0.wav"}
        for text, audios in asked
    ]  # fmt: skip
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


def prompts_of(lm, rows: Path) -> list:
    audio = EncodedAudio(lm.codec)
    return [lm.encode_prompt(row, audio) for row in read_rows(rows)]


def sampled(lm, rows: Path, length: int = LENGTH) -> list:
    seeds = [[1, 2, 3], [4, 5, 6]]
    groups = sample_groups(lm, prompts_of(lm, rows), seeds, Sampling(length, TEMPERATURE))
    return [rollout for group in groups for rollout in group]


def scored(lm, rollouts, share_prompts: bool = True) -> torch.Tensor:
    action = pad_tokens([rollout.tokens for rollout in rollouts]).action
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], action, "cpu")
    return Policy(lm, share_prompts=share_prompts)(batch, TEMPERATURE)[0]


def naive_logprobs(naive: NaiveVita, rollout, mode: list[int], size: int) -> torch.Tensor:
    """float64 [T]: each token by the head whose turn it is, from the whole sequence anew, written as a plain loop.

    size: ids that there are; padding behind them has no share.
    """
    answer = rollout.tokens.ids
    schedule, pairs = "", list(zip(mode[::2], mode[1::2], strict=True))
    while len(schedule) < len(answer):
        main, ahead = pairs.pop(0) if len(pairs) > 1 else pairs[0]
        schedule += "M" * main + "m" * ahead
    ids, k, found = rollout.prompt.ids, 0, []
    for letter, token in zip(schedule, answer, strict=False):
        states = naive.states(ids)
        k = k + 1 if letter == "m" and k < naive.n_mtp else 0
        found.append((naive.logits(states[k][-1])[:size] / TEMPERATURE).log_softmax(-1)[token])
        ids = torch.cat([ids, token[None]])
    return torch.stack(found)


@pytest.mark.parametrize("name", MODES)
def test_what_is_sampled_is_what_the_schedule_says(home, rows, name):
    """Sampler, score and a float64 loop over whole sequences agree; the main head alone would say something else."""
    said, mode = MODES[name]
    lm = load_model(with_mode(home / "boost", said))
    assert lm.mode == mode
    rollouts, naive = sampled(lm, rows), NaiveVita(home / "boost", main=2)
    with torch.no_grad():
        logp = [scored(lm, rollouts, share_prompts) for share_prompts in (True, False)]
    of_sampler = torch.cat([rollout.logprob for rollout in rollouts])
    assert len(of_sampler) == sum(len(rollout.tokens) for rollout in rollouts) > 60
    assert all((own - of_sampler).abs().max() < 1e-5 for own in logp)
    for rollout in (rollouts[0], rollouts[-1]):
        expected = naive_logprobs(naive, rollout, mode, lm.tokens.size)
        torch.testing.assert_close(rollout.logprob.double(), expected, atol=5e-5, rtol=1e-5)
    lm.mode = None
    with torch.no_grad():
        assert (scored(lm, rollouts) - of_sampler).abs().max() > 0.1


@pytest.mark.parametrize("name", ["boost", "plus"])
def test_an_answer_does_not_depend_on_its_company(home, rows, name):
    lm = load_model(with_mode(home / name, [1, 2, 2, 1]))
    rollouts = sampled(lm, rows)
    with torch.no_grad():
        together = scored(lm, rollouts).split([len(rollout.tokens) for rollout in rollouts])
        for rollout, own in zip(rollouts, together, strict=True):
            [[alone]] = sample_groups(lm, [rollout.prompt], [[rollout.seed]], Sampling(LENGTH, TEMPERATURE))
            assert torch.equal(alone.tokens.ids, rollout.tokens.ids)
            assert torch.allclose(alone.logprob, rollout.logprob, atol=1e-5)
            assert torch.allclose(scored(lm, [rollout]), own, atol=1e-5)
            assert torch.allclose(rollout.logprob, own, atol=1e-5)


def test_an_answer_shorter_than_the_depths_is_scored(home, rows):
    lm = load_model(with_mode(home / "boost", None))
    for length in (1, 2, 3):
        rollouts = sampled(lm, rows, length)
        with torch.no_grad():
            logp = scored(lm, rollouts)
        assert (logp - torch.cat([rollout.logprob for rollout in rollouts])).abs().max() < 1e-5


def test_the_gradient_is_that_of_the_equations(home, rows):
    """Nothing is detached: what a depth says moves the main layers and the embeddings too."""
    lm = load_model(with_mode(home / "boost", [1, 3]))
    rollout, naive = sampled(lm, rows, 8)[0], NaiveVita(home / "boost", main=2)
    for tensor in naive.state.values():
        tensor.requires_grad_()
    said = naive_logprobs(naive, rollout, [1, 3], lm.tokens.size)
    ahead = torch.tensor([place % 4 == 3 for place in range(len(said))])  # what the last depth said
    said[ahead].sum().backward()
    batch = make_batch([rollout.prompt], [rollout.tokens], ahead[None], "cpu")
    lm.model.zero_grad()
    Policy(lm)(batch, TEMPERATURE)[0].sum().backward()
    names = ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    names += ["mtp_projs.0.weight", "mtp_projs.2.weight", "model.layers.4.self_attn.q_proj.weight"]
    for name in names:
        own = lm.model.get_parameter(name).grad
        expected = naive.state[name].grad[: len(own)]
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(own.double(), expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "said", "mode"),
    [
        ("boost", "off", None), ("boost", [8192, 0], None), ("vanilla", None, None), ("vanilla", "off", None),
        ("boost", "turbo", [1, 10]), ("plus", None, [1, 10, 4, 10]), ("plus", "boost", [1, 10, 4, 10]),
    ],
)  # fmt: skip
def test_one_setting_says_who_samples(home, name, said, mode):
    assert load_model(with_mode(home / name, said)).mode == mode


def test_a_folder_without_a_schedule_uses_all_its_depths(home, tmp_path):
    for part in ("glm-4-voice-tokenizer", "glm-4-voice-decoder"):
        (tmp_path / part).symlink_to(home / part)
    shutil.copytree(with_mode(home / "boost", None), tmp_path / "boost")
    (tmp_path / "boost/generation_config.json").unlink()
    lm = load_model(tmp_path / "boost")
    assert lm.mode == [1, 3] and tuple(lm.ratio) == (1, 10, 4, 10)


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("boost", "fast", "mtp: expected off, turbo, boost, balance or a list of counts, got 'fast'"),
        ("boost", 3, "mtp: expected off, turbo, boost, balance or a list of counts, got 3"),
        ("boost", [1, 2, 3], "mtp_inference_mode: expected pairs"),
        ("vanilla", "boost", "mtp: expected off, the model has no multi-token prediction; got 'boost'"),
    ],
)
def test_a_mode_that_cannot_be_is_one_line(home, name, mode, said):
    for attempt in (check_model, load_model):
        with pytest.raises(InputError) as caught:
            attempt(with_mode(home / name, mode))
        assert f"elocute.json: {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_targets_are_laid_out_as_the_folder_was_trained(home, rows, tmp_path):
    """Balance: one text token, two units between their markers; then what is left of both, here nine and five."""
    for part in ("glm-4-voice-tokenizer", "glm-4-voice-decoder"):
        (tmp_path / part).symlink_to(home / part)
    shutil.copytree(with_mode(home / "boost", None), tmp_path / "balance")
    (tmp_path / "balance/generation_config.json").write_text('{"mtp_inference_mode": [1, 4, 3, 8, 4, 10]}')
    lm = load_model(tmp_path / "balance")
    row = read_rows(rows)[0]
    ids = lm.encode_target(row, EncodedAudio(lm.codec)).ids
    kinds = "".join("t" if of else "a" for of in (ids < lm.tokens.begin).tolist())
    assert kinds == "t" + "a" * 4 + "t" * 9 + "a" * 7 + "t" and lm.mode == [1, 4, 3, 8, 4, 10]


def test_a_ratio_may_be_said_and_is_saved(home, rows, tmp_path):
    """Of Vanilla, whose schedule need not say it."""
    folder = with_mode(home / "vanilla", None)

    def says(**said) -> Path:
        (folder / "elocute.json").write_text(json.dumps({"kind": "vita_audio"} | said))
        return folder

    lm = load_model(says(ratio=[2, 5]))
    ids = lm.encode_target(read_rows(rows)[0], EncodedAudio(lm.codec)).ids
    kinds = "".join("t" if of else "a" for of in (ids < lm.tokens.begin).tolist())
    assert kinds.startswith("tt" + "a" * 5 + "t") and tuple(load_model(says()).ratio) == (1, 10, 4, 10)
    says(ratio=[2, 5])
    lm.save(tmp_path / "saved")
    assert load_model(tmp_path / "saved").ratio == [2, 5]
    for ratio, complaint in (([2, 2], "ratio: text_audio_interval_ratio: expected pairs"), ("2 5", 'got "2 5"')):
        with pytest.raises(InputError, match=complaint):
            check_model(says(ratio=ratio))
    with pytest.raises(InputError, match="elocute.json: ratios: unknown key"):
        check_model(says(ratios=[2, 5]))


# training


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


@pytest.mark.parametrize("lora", ["{rank: 4}", "null"], ids=["lora", "full"])
@pytest.mark.parametrize("mode", ["published", "off"])
def test_a_hybrid_step_trains_the_depths_or_leaves_them_alone(home, rows, tmp_path, lora, mode):
    folder = with_mode(home / "boost", None if mode == "published" else mode)
    judge = "{kind: function, function: 'tests/models/test_vita_mtp.py:length', low: 0, high: 100}"
    objective = "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: text}, sft: {scope: all}}"
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
            f"objective={objective}", f"rewards=[{judge}]", f"lora={lora}", "rollout.group_size=2",
            "rollout.prompts_per_step=2", f"rollout.max_new_tokens={LENGTH}", "optim.warmup_steps=0", "optim.lr=0.01",
            "reward_mix.invalid_penalty=0",
        ],
    )  # fmt: skip
    trainer = Trainer(recipe)
    if mode == "off":
        assert not any(p.requires_grad for name, p in trainer.lm.model.named_parameters() if is_mtp(name, 2))
    assert trainer.train()
    trainer.save_model()
    trainer.close()
    before, after = weights(folder), weights(tmp_path / "run/model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after) and any(not is_mtp(name, 2) for name in moved)
    layers = {name.split(".")[2] for name in moved if name.startswith("model.layers.")}
    assert layers == ({"0", "1"} if mode == "off" else {"0", "1", "2", "3", "4"})
    assert any(name.startswith("mtp_") for name in moved) == (mode == "published" and lora == "null")
    assert load_model(tmp_path / "run/model").mode == (None if mode == "off" else [1, 10, 4, 10])
