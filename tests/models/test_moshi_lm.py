"""Moshi through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elocute.cli import app
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models.batch import make_batch, pad_tokens
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import moshi
from tests.models.adapter_checks import LENGTH, AdapterChecks, recipe_of, score

WIDTH = 1 + moshi.CODEBOOKS
USER, ANSWER = {"role": "user", "content": "<|audio|>"}, {"sft_target_audio": "0.wav", "sft_target_text": "the cat"}
TURNS = [
    [("user", "<|audio|>")],
    [("user", "<|audio|>"), ("assistant", "hello<|audio|>"), ("user", "<|audio|>")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return moshi.checkpoint(tmp_path_factory.mktemp("models") / "moshiko")


class TestAdapter(AdapterChecks):
    still = ("audio_encoder.",)
    more = ("gradient_checkpointing=true",)
    test_control_tokens_are_refused = None  # it reads no text from its user

    def check_run(self, folder, adapters):
        assert all(".decoder.model.layers." in name for name in adapters)

    def test_a_full_step_moves_all_but_what_is_frozen(self, folder, rows, tmp_path):
        _, moved = self.step(recipe_of(folder, rows, tmp_path / "run", "dpo", "freeze=['^embed_tokens']"))
        heads = {"decoder.lm_head.weight", "depth_decoder.lm_heads.weight"}
        assert heads | {"depth_decoder.input_projections.weight"} <= moved
        assert not any(name.startswith((*self.still, "embed_tokens")) for name in moved)


def test_a_step_is_a_text_token_and_a_code_of_each_codebook(lm):
    assert (lm.codec.sample_rate, lm.codec.codebooks, lm.streams) == (24000, moshi.CODEBOOKS, (WIDTH,))


def test_answers_of_different_lengths_are_scored_as_each_alone(lm, rows, groups):
    audio, row = EncodedAudio(lm.codec), read_rows(rows)[0]
    both = [groups[1][0], SimpleNamespace(prompt=lm.encode_prompt(row, audio), tokens=lm.encode_target(row, audio))]
    assert len({len(one.tokens) for one in both}) == 2
    alone = torch.cat([score(lm, [one]) for one in both])
    for share_prompts in (True, False):
        assert torch.allclose(score(lm, both, share_prompts=share_prompts), alone, atol=1e-5)


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


def test_candidates_become_pairs_that_are_learnt_as_they_were_sampled(folder, lm, rows, tmp_path):
    """Each verb in turn; nothing of an answer's frames, its words' places or its last step is lost on the way."""
    judge = "rewards=[{kind: function, function: 'tests/models/adapter_checks.py:length', low: 0, high: 100}]"
    recipe = ["recipes/starter/wavalign.yaml", f"model={folder}", f"rollout.max_new_tokens={LENGTH}", judge]
    for words in (
        ["sample", *recipe, "--data", rows, "-n", 4, "-o", tmp_path / "out"],
        ["score", *recipe, "--candidates", tmp_path / "out/candidates.jsonl", "-o", tmp_path / "scored.jsonl"],
        ["pairs", "--input", tmp_path / "scored.jsonl", "--output", tmp_path / "pairs.jsonl", "--score-mode", "reward"],
    ):
        app([*map(str, words)], standalone_mode=False)
    scored = {line["id"]: line["output"] for line in map(json.loads, (tmp_path / "scored.jsonl").open())}
    pairs, examples = [*map(json.loads, (tmp_path / "pairs.jsonl").open())], read_rows(tmp_path / "pairs.jsonl")
    assert len(pairs) == len(scored) == 2
    audio = EncodedAudio(lm.codec)
    for pair, example in zip(pairs, examples, strict=True):
        for side, encode in (("chosen", lm.encode_target), ("rejected", lm.encode_rejected)):
            sampled = scored[pair["id"]][pair[f"{side}_key"]]
            [[again]] = sample_groups(
                lm, [lm.encode_prompt(example, audio)], [[sampled["seed"]]], Sampling(LENGTH, 1.0)
            )
            assert torch.equal(encode(example, audio).ids, again.tokens.ids)
            assert torch.equal(encode(example, audio).action, again.tokens.action)
            assert [len(frame) for frame in sampled["output-units"]] == [moshi.CODEBOOKS] * (LENGTH - 1)
            assert sampled["measures"].keys() == {"auto_bleu", "auto_bleu_units"}
    assert Trainer(recipe_of(folder, tmp_path / "pairs.jsonl", tmp_path / "run", "dpo")).train()


def test_words_stand_where_they_are_said_or_are_spread(lm, rows):
    row = {"messages": [USER], "audios": ["0.wav"], **ANSWER, "sft_target_audio": "1.wav"}
    lines = [row, row | {"sft_target_words": [["the", 0.1], ["cat", 0.2]]}]
    (rows.parent / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, audio = read_rows(rows.parent / "words.jsonl"), EncodedAudio(lm.codec)
    spread, placed = (lm.layout.read(lm.encode_target(one, audio).ids).steps for one in found)
    codes, padding, before = audio.units(found[0].target_audio), lm.layout.padding, lm.layout.before_word
    assert len(spread) == len(placed) == len(codes) + 1 == 8  # a silent frame follows
    assert spread[-1][1] == placed[-1][1] == lm.layout.silence[0]
    the, cat = (moshi.PIECES.index(piece) for piece in ("▁the", "▁cat"))
    assert [step[0] for step in spread] == [the, padding, padding, before, cat, *[padding] * 3]
    assert [step[0] for step in placed] == [before, the, cat, *[padding] * 5]


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
