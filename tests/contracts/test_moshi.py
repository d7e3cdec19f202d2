"""Moshi against transformers' own forward, generation and files, on tiny random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MoshiForConditionalGeneration
from transformers.models.moshi.modeling_moshi import MoshiFlexibleLinear

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch
from elocute.models.moshi_lm import FlexibleLinear, delayed, text_stream
from elocute.rollout import Sampling, sample_groups
from tests.contracts import moshi
from tests.contracts.test_csm import changed, tensors

RATE, CODEBOOKS = 24000, moshi.CODEBOOKS
PADDING, BEFORE_WORD = moshi.PIECES.index("<pad>"), moshi.PIECES.index("<unk>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return moshi.checkpoint(tmp_path_factory.mktemp("models") / "moshiko")


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return MoshiForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def row(tmp_path_factory) -> Example:
    """A question, an earlier answer, a question; and a target."""
    home, random, refs = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0), []
    for number, samples in enumerate((9000, 13001, 4000, 16000)):
        refs.append(AudioRef(home / f"{number}.wav"))
        save_wav(refs[-1].path, (0.3 * random.standard_normal(samples)).astype(np.float32).clip(-1, 1), RATE)
    turns = (Message("user", "<|audio|>"), Message("assistant", "hello<|audio|>"), Message("user", "<|audio|>"))
    return Example("a", turns, tuple(refs[:3]), "the cat sat", refs[3], file="r", line=1)


def joined(lm, prompt, answer) -> torch.Tensor:
    """Prompt and answer in the order of transformers' inputs, the delay in it: [T, 1 + 2 · codebooks]."""
    steps = answer.ids.view(-1, 1 + CODEBOOKS)
    silence = torch.tensor(lm.layout.silence)
    user = silence.expand(len(steps), -1).clone()
    user[0, 1:] = prompt[-1, -CODEBOOKS + 1 :]
    return torch.cat([delayed(prompt, CODEBOOKS), torch.cat([steps, user], 1)])


def test_logits_are_those_of_transformers_forward(lm, theirs, row):
    audio = EncodedAudio(lm.codec)
    prompt, answer = lm.encode_prompt(row, audio), lm.encode_target(row, audio)
    whole, steps = joined(lm, prompt, answer), len(answer) // (1 + CODEBOOKS)
    streams, after = whole[:-1].T[None], whole[1:].T[None]
    # It delays the labels itself, so it gets them without: acoustic codes a frame early.
    labels = after[:, 1 : 1 + CODEBOOKS].clone()
    labels[:, 1:, :-1] = labels[:, 1:, 1:].clone()
    with torch.no_grad():
        expected = theirs(
            input_ids=streams[:, 0],
            moshi_audio_codes=streams[:, 1 : 1 + CODEBOOKS],
            user_audio_codes=streams[:, 1 + CODEBOOKS :],
            text_labels=after[:, 0].contiguous(),
            audio_labels=labels,
        )
        batch = make_batch([prompt], [answer], torch.ones(1, len(answer), dtype=torch.bool), "cpu")
        found = lm.states(batch, share_prompts=False)
    logits = {of.where[0].item(): of.hidden @ of.head.weight.T for of in found}
    assert torch.allclose(logits[0], expected.logits[0, -steps:], atol=1e-5)
    spoken = torch.stack([logits[1 + codebook] for codebook in range(CODEBOOKS)], 1)
    assert torch.allclose(spoken, expected.audio_logits[-steps:], atol=1e-5)


def test_the_likeliest_answer_is_what_transformers_generates(lm, theirs, row):
    """Its own prompt: three streams without delay, to which it adds the first frame, the delay and a silent user."""
    prompt = lm.encode_prompt(row, EncodedAudio(lm.codec))
    given = prompt[1:].T[None]
    torch.manual_seed(0)
    expected = theirs.generate(
        input_ids=given[:, 0],
        moshi_audio_codes=given[:, 1 : 1 + CODEBOOKS],
        user_audio_codes=given[:, 1 + CODEBOOKS :],
        max_new_tokens=6,
        do_sample=False,
        return_audio_codes=True,
        attention_mask=torch.ones(1, given.shape[2], dtype=torch.long),
        depth_decoder_do_sample=False,
    )
    [[rollout]] = sample_groups(lm, [prompt], [[0]], Sampling(6, temperature=1e-5))
    answer = lm.layout.read(rollout.tokens.ids)
    assert [step[0] for step in answer.steps] == expected.sequences[0, -6:].tolist()
    codes = expected.audio_codes[0].T.tolist()
    heard = len(given[0, 0])
    assert codes[:heard] == given[0, 1 : 1 + CODEBOOKS].T.tolist()
    assert [list(frame) for frame in answer.units] == codes[heard : heard + 5]


def test_streams_stand_as_the_three_talk(lm, row):
    audio = EncodedAudio(lm.codec)
    prompt = lm.encode_prompt(row, audio)
    asked, said, again = (torch.from_numpy(audio.units(ref)) for ref in row.audios)
    assert len(prompt) == 1 + len(asked) + len(said) + len(again) == 1 + 5 + 7 + 3
    assert prompt[0].tolist() == [moshi.TEXT] + [moshi.MIMI["codebook_size"]] * 2 * CODEBOOKS
    silence, hears = torch.tensor(lm.layout.silence), slice(1, 1 + len(asked))
    assert torch.equal(prompt[hears, 1 + CODEBOOKS :], asked) and (prompt[hears, 1 : 1 + CODEBOOKS] == silence).all()
    assert (prompt[hears, 0] == PADDING).all() and (prompt[-len(again) :, 0] == PADDING).all()
    speaks = slice(1 + len(asked), 1 + len(asked) + len(said))
    assert torch.equal(prompt[speaks, 1 : 1 + CODEBOOKS], said) and (prompt[speaks, 1 + CODEBOOKS :] == silence).all()
    assert prompt[speaks, 0].tolist() == [moshi.PIECES.index("▁hello"), *[PADDING] * 6]


def test_acoustic_codes_stand_a_frame_late():
    frames = torch.arange(12).view(4, 3).repeat_interleave(3, 1)  # [4, 9]: text, then twice 4 codebooks
    late = delayed(frames, 4)
    assert torch.equal(late[:, [0, 1, 5]], frames[:, [0, 1, 5]])
    acoustic = [2, 3, 4, 6, 7, 8]
    assert torch.equal(late[1:, acoustic], frames[:-1, acoustic])
    assert torch.equal(late[0, acoustic], frames[0, acoustic])


def test_words_stand_where_they_are_said():
    words = [[10], [11, 12], [13]]
    assert text_stream(words, [2, 3, 7], 9, 3, 0) == [3, 0, 10, 11, 12, 3, 0, 13, 3]
    assert text_stream(words, [0, 0, 0], 5, 3, 0) == [10, 11, 12, 13, 3]
    assert text_stream(words, [9, 9, 9], 6, 3, 0) == [3, 0, 10, 11, 12, 13]  # there is just room for them
    assert text_stream(words, [0, 1, 3], 4, 3, 0) == [10, 11, 12, 13]


def test_the_depth_decoders_layer_is_transformers():
    layer = MoshiFlexibleLinear(6, 5, 4)
    x, place = torch.randn(7, 2, 6), torch.tensor([1, 3])
    expected = layer(x, place), layer(torch.randn(7, 4, 6)).shape, layer(x[:, :1], place)
    layer.__class__ = FlexibleLinear
    assert torch.allclose(layer(x, place), expected[0], atol=1e-6)
    assert layer(torch.randn(7, 4, 6)).shape == expected[1]
    assert torch.allclose(layer(x[:, :1], place), expected[2], atol=1e-6)


def test_the_depth_decoder_looks_back_only_under_eager_attention(lm):
    """transformers gives it no mask, which only some attentions take for a causal one."""
    hidden, cells = torch.randn(3, 32), torch.randint(0, 16, (3, CODEBOOKS))
    before = lm.depth(hidden, cells)
    try:
        lm.model.depth_decoder.config._attn_implementation = "eager"
        assert torch.allclose(lm.depth(hidden, cells), before, atol=1e-5)
    finally:
        lm.model.depth_decoder.config._attn_implementation = "sdpa"


def test_saved_it_is_the_same_folder_and_transformers_loads_it(folder, lm, tmp_path):
    with torch.no_grad():
        weight = lm.model.depth_decoder.lm_heads.weight
        before = weight.clone()
        weight.add_(1)
    lm.save(tmp_path / "saved")
    with torch.no_grad():
        weight.copy_(before)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == sorted(p.name for p in folder.iterdir())
    old, new = tensors(folder), tensors(tmp_path / "saved")
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["depth_decoder.lm_heads.weight"]
    again, found = MoshiForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(again.depth_decoder.lm_heads.weight, before + 1)
    assert load_model(tmp_path / "saved").codec.digest == lm.codec.digest


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"audio_encoder_config": {"codebook_size": 32}}, "the codec has 32 codes, the model's vocabulary 16"),
        ({"num_codebooks": 7}, "greater than the maximum number of codebooks"),
        ({"vocab_size": 20}, "the tokenizer has ids up to 35, the model's vocabulary 20"),
        ({"model_type": "mimi"}, "model_type: expected moshi, got 'mimi'"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_weight_is_read(folder, tmp_path, said, complaint):
    bad = changed(folder, tmp_path / "bad", **said)
    for file in bad.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match=complaint) as error:
        check_model(bad)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad")
    (bad / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: missing"):
        load_model(bad)


def test_a_tokenizer_without_padding_is_refused(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bad / name).write_text((bad / name).read_text().replace("<pad>", "<no>"))
    with pytest.raises(InputError, match="the tokenizer has no token '<pad>', with which Moshi writes silence"):
        check_model(bad)


def test_any_rate_is_heard(lm, tmp_path):
    waveform = (0.3 * np.random.default_rng(1).standard_normal(8000)).astype(np.float32).clip(-1, 1)
    save_wav(tmp_path / "a.wav", waveform, 16000)
    example = Example("a", (Message("user", "<|audio|>"),), (AudioRef(tmp_path / "a.wav"),))
    prompt = lm.encode_prompt(example, EncodedAudio(lm.codec))
    assert len(prompt) == 1 + -(-8000 * RATE // 16000 // 1920) and load_audio(tmp_path / "a.wav")[1] == 16000
