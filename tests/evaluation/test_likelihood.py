"""Log-probs of utterances against a naive float64 twin: one utterance at a time, all logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef
from elocute.errors import InputError, RunError
from elocute.evaluation import likelihood
from elocute.evaluation.likelihood import file_logprobs, normalised, utterance_logprobs
from tests.evaluation.tiny_unit_lm import BOS, FIRST, UNITS, record, tiny_unit_lm, tokens

LM = tiny_unit_lm()
TWIN = tiny_unit_lm()
TWIN.model.double()

unit_ids = st.integers(FIRST, FIRST + UNITS - 1)
utterances_of_units = st.lists(
    st.tuples(st.lists(unit_ids, max_size=3), st.lists(unit_ids, max_size=12)), min_size=1, max_size=7
)


def utterance(prompt, rest):
    return torch.tensor([BOS, *prompt]), tokens(rest)


def naive(prompt: torch.Tensor, rest) -> float:
    ids = torch.cat([prompt, rest.ids])
    with torch.no_grad():
        logp = torch.log_softmax(TWIN.model(ids[None]).logits[0], -1)
    return sum(float(logp[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))


@settings(max_examples=15)
@given(utterances_of_units, st.integers(1, 5), st.randoms(use_true_random=False))
def test_as_the_naive_twin_whatever_the_batch_and_order(rows, batch, random):
    utterances = [utterance(*row) for row in rows]
    found = utterance_logprobs(LM, utterances, batch)
    assert [count for _, count in found] == [len(rest) for _, rest in rows]
    wanted = [naive(*row) for row in utterances]
    assert np.allclose([total for total, _ in found], wanted, rtol=1e-5, atol=1e-5)
    order = list(range(len(rows)))
    random.shuffle(order)
    again = utterance_logprobs(LM, [utterances[index] for index in order], batch)
    assert again == [found[index] for index in order]  # the order does not change a bit
    alone = utterance_logprobs(LM, utterances, 1)
    for (total, count), (other, _) in zip(found, alone, strict=True):
        assert abs(total - other) <= 1e-6 * max(1, count)


def test_equal_utterances_have_equal_scores_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(FIRST, FIRST + UNITS, (length,), generator=generator).tolist() for length in (9, 9, 3, 7)]
    utterances = [utterance([], row) for row in (rows[0], rows[1], rows[2], rows[3], rows[0])]
    for batch in (1, 2, 3):
        found = utterance_logprobs(LM, utterances, batch)
        assert found[0] == found[4] and found[0] != found[1]


def test_only_the_tokens_that_are_scored_meet_the_vocabulary(monkeypatch):
    rows = []

    def counting(hidden, weight, targets, **options):
        rows.append(len(hidden))
        return likelihood_of(hidden, weight, targets, **options)

    likelihood_of = likelihood.selected_logprobs
    monkeypatch.setattr(likelihood, "selected_logprobs", counting)
    utterance_logprobs(LM, [utterance([5, 6, 7], [8, 9]), utterance([], [4, 5, 6, 7]), utterance([], [])], batch=8)
    assert rows == [6]


def test_the_model_is_scored_without_dropout_and_left_as_it_was():
    lm = tiny_unit_lm()
    lm.model.config.attention_dropout = 0.5
    for layer in lm.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    lm.model.train()
    utterances = [utterance([], [4, 5, 6, 7, 8])]
    assert utterance_logprobs(lm, utterances) == utterance_logprobs(LM, utterances)
    assert lm.model.training


def test_the_normalisations():
    assert normalised((-6.0, 4), "mean") == -1.5
    assert normalised((-6.0, 4), "sum") == -6.0


@pytest.fixture
def files(tmp_path):
    return [record(tmp_path / f"{seed}.wav", seed, 0.5 + 0.2 * seed) for seed in range(3)]


def test_files_are_encoded_once_and_scored(files, tmp_path):
    audio, said = EncodedAudio(LM.codec, tmp_path / "cache"), []
    found = file_logprobs(LM, audio, [files[2], *files], progress=lambda *step: said.append(step[:3]))
    assert list(found) == files and audio.counts.encoded == 3
    assert said[-1] == ("score", 3, 3) and ("encode", 3, 3) in said
    for file in files:
        units = audio.units(AudioRef(file))
        assert found[file][1] == len(units) > 5
        assert found[file][0] == pytest.approx(naive(*utterance([], (FIRST + units).tolist())), rel=1e-5)
    again = EncodedAudio(LM.codec, tmp_path / "cache")
    assert file_logprobs(LM, again, files) == found and again.counts.encoded == 0


def test_a_model_that_ends_what_it_says_is_scored_on_its_end_too(files, tmp_path):
    lm = tiny_unit_lm(eos=BOS)
    audio = EncodedAudio(lm.codec, tmp_path / "cache")
    found = file_logprobs(lm, audio, files)
    for file in files:
        assert found[file][1] == len(audio.units(AudioRef(file))) + 1


def test_a_file_that_cannot_be_scored_is_named(files, tmp_path):
    audio = EncodedAudio(LM.codec, tmp_path / "cache")
    with pytest.raises(InputError, match=r"2\.wav: too long: .* the model's context holds 8"):
        file_logprobs(tiny_unit_lm(context=8), audio, files[2:])
    with pytest.raises(InputError, match="nowhere.wav"):
        file_logprobs(LM, audio, [tmp_path / "nowhere.wav"])


def test_weights_that_are_not_finite_give_no_score(files, tmp_path):
    lm = tiny_unit_lm()
    with torch.no_grad():
        lm.model.model.norm.weight[0] = torch.nan
    with pytest.raises(RunError, match="0.wav: its log-prob is nan"):
        file_logprobs(lm, EncodedAudio(lm.codec, tmp_path / "cache"), files)
