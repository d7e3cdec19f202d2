"""MiniCPM-o 2.6 through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch
from elocute.models.minicpm_o import MiniCPMO
from elocute.models.minicpm_o.prompt import Prompt
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from tests.contracts import minicpm_o
from tests.contracts.spoil import drop
from tests.models.adapter_checks import LENGTH, TEMPERATURE, AdapterChecks, score

GROUP = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("models") / "MiniCPM-o-2_6")


class TestAdapter(AdapterChecks):
    still = ("vpm.", "tts.dvae.", "apm.")

    def odd(self, lm):
        """Blanks before the word, only one mark behind it, a frame in which one codebook alone says the end."""
        word = lm.tokenizer.encode("  the")
        return [[*word, terminator, *range(8), 1, lm.layout.end, 2, 3] for terminator in lm.control.terminators]


def test_some_answers_come_to_speak(lm, groups):
    assert (lm.codec.sample_rate, lm.streams) == (24000, (1, 4))
    assert sum(not rollout.tokens.text.all() for group in groups for rollout in group) > 1


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


def test_where_nobody_says_it_speaks_as_it_was_published(lm, prompts):
    """Text at 0.7, the codebooks at 0.1 and 0.3 by turns."""
    as_published = (0.7, 0.1, 0.3, 0.1, 0.3)
    for prompt in prompts:
        [[silent]], [[said]] = (sample_groups(lm, [prompt], [[3]], Sampling(LENGTH, t)) for t in (None, as_published))
        assert torch.equal(silent.tokens.ids, said.tokens.ids) and torch.equal(silent.logprob, said.logprob)
    assert lm.temperatures(None) == list(as_published) and lm.temperatures(1) == [1] * 5


def test_an_answer_without_words_is_broken(lm):
    answer = lm.layout.read(lm.tokenizer.encode("<|tts_eos|><|im_end|>", add_special_tokens=False))
    assert answer.done and answer.broken == "nothing was written that could be spoken"


def test_a_frame_is_512_samples(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    answer = lm.layout.read(tokens.ids)
    assert lm.tokenizer.decode(answer.text_ids) == "hel"
    assert len(lm.decode(tokens.ids).waveform) == 512 * len(answer.units)


def test_the_longest_answer_must_fit_behind_its_prompt(lm, prompts):
    assert lm.context == lm.config.llm.max_position_embeddings
    with pytest.raises(InputError, match=f"the model's context holds {lm.context}"):
        sample_groups(lm, prompts[:1], [[1]], Sampling(lm.context))


def test_speech_must_have_places_in_the_decoder(lm, prompts):
    """302 of its 4096 are the text's and the mark's."""
    assert lm.longest_answer == 3794
    with pytest.raises(InputError, match="max_new_tokens: expected at most 3794, got 3795: the model has places for"):
        sample_groups(lm, prompts[:1], [[1]], Sampling(3795))
    written = lm.tokenizer.encode("the cat<|tts_eos|><|im_end|>", add_special_tokens=False)
    for frames in (3794, 3795):
        answer = lm.layout.read([*written, *[7] * 4 * (frames - 1), *[lm.layout.end] * 4]).tokens()
        if frames == 3794:
            lm.check_fits("row 1", prompts[1], answer)
            continue
        with pytest.raises(InputError, match="row 1: too long: 3795 frames, the speech decoder holds 3794"):
            lm.check_fits("row 1", prompts[1], answer)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "assets/Vocos.pt").unlink(), "Vocos.pt: not a file of weights"),
        (lambda folder: drop(folder, "tts.dvae.coef"), "the weights lack tts.dvae.coef"),
    ],
)
def test_a_codec_that_is_not_whole_is_named_before_anything_is_loaded(folder, tmp_path, monkeypatch, spoil, said):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)
    monkeypatch.setattr(MiniCPMO, "load", None)  # not come to
    for load in (check_model, load_model):
        with pytest.raises(InputError, match=said):
            load(copy)


def test_bfloat16_speaks_as_it_is_scored(folder):
    """Weights in float32, products in bfloat16: in the decoder that speaks, too."""
    lm = load_model(folder)
    lm.compute, computed = torch.bfloat16, []
    layer = lm.core().tts.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _module, _inputs, output: computed.append(output.dtype))
    ids = lm.template.tokens
    prompt = Prompt(torch.tensor([ids.spk_bos, ids.spk, ids.spk_eos, ids.tts_bos]))
    prompt = replace(prompt, given=torch.tensor(lm.template.written("the cat")))
    rollouts = sample_groups(lm, [prompt], [[1, 2]], Sampling(LENGTH, TEMPERATURE))[0]
    assert len(computed) > 2 and set(computed) == {torch.bfloat16}
    said = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
    assert len(said) and (score(lm, rollouts) - said).abs().mean() < 0.01
