"""How likely a CTC ear finds a text: sums and best paths against all paths written out, and the reward that asks."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from elocute.data.types import Example, Message
from elocute.errors import InputError
from elocute.recipe.rewards import AsrSpec
from elocute.rewards import ctc
from elocute.rewards.build import build_reward
from elocute.rewards.outcome import Invalid, Scored, Unavailable
from tests.rewards import tiny_models
from tests.rewards.answers import answer

BLANK, SPACE = 0, 1


def paths(frames: int, letters: list[int], size: int):
    """Every sequence of `frames` symbols that reads as `letters`."""
    for path in itertools.product(range(size), repeat=frames):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK] == list(letters):
            yield path


@st.composite
def heard(draw):
    """Frames' log-probs [F, 4] and two words of letters 2 and 3."""
    words = draw(st.lists(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=2), min_size=1, max_size=2))
    seed, frames = draw(st.integers(0, 2**16)), draw(st.integers(1, 6))
    logits = 3 * np.random.default_rng(seed).standard_normal((frames, 4))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), words


@settings(max_examples=30)
@given(heard())
def test_a_likelihood_is_the_sum_over_all_paths(given_):
    log_probs, words = given_
    letters = ctc.joined(words, SPACE)
    sums = [sum(log_probs[t, s] for t, s in enumerate(path)) for path in paths(len(log_probs), letters, 4)]
    found = ctc.log_likelihood(log_probs, letters, BLANK)
    assert found == pytest.approx(np.logaddexp.reduce(sums), abs=1e-9) if sums else found == -math.inf


@settings(max_examples=30)
@given(heard())
def test_words_are_where_the_likeliest_path_has_them(given_):
    log_probs, words = given_
    letters = ctc.joined(words, SPACE)
    ways = list(paths(len(log_probs), letters, 4))
    found = ctc.find_words(log_probs, words, SPACE, BLANK)
    assert len(found) == len(words)
    if not ways:
        assert {word.probability for word in found} == {0.0}
        return
    best = max(ways, key=lambda path: sum(log_probs[t, s] for t, s in enumerate(path)))
    runs, at = [], 0  # frames of each letter
    for symbol, run in itertools.groupby(best):
        end = at + len(list(run))
        runs += [(at, end)] if symbol != BLANK else []
        at = end
    place = 0
    for word, spoken in zip(words, found, strict=True):
        own = runs[place : place + len(word)]
        clearest = [log_probs[a:b, letter].max() for (a, b), letter in zip(own, word, strict=True)]
        assert (spoken.first, spoken.end) == (own[0][0], own[-1][1])
        assert spoken.probability == pytest.approx(math.exp(np.mean(clearest)))
        place += len(word) + 1


def test_no_audio_has_no_likelihood():
    nothing = np.empty((0, 4))
    assert ctc.log_likelihood(nothing, [2], BLANK) == -math.inf
    assert ctc.find_words(nothing, [[2], [3]], SPACE, BLANK) == [ctc.Spoken(0.0, 0, 0)] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.ctc(tmp_path_factory.mktemp("ears") / "ctc")


def reward_of(folder, **how):
    ear = {"kind": "transformers", "path": folder, "device": "cpu"}
    return build_reward(AsrSpec(kind="asr", ear=ear, form="likelihood", **how))


def noise(seconds: float, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds)).astype(np.float32)


def test_the_reward_is_torchs_ctc_loss_of_each_answer_by_itself(folder):
    import torch

    reward = reward_of(folder, word_credit=1)
    answers = [answer("Ab, a.", waveform=noise(s, n), rate=16_000) for n, s in enumerate((1.5, 0.8, 1.1))]
    for outcome, spoken in zip(reward(answers), answers, strict=True):
        [log_probs] = reward.ear.log_probs([spoken.utterance.waveform], 16_000)
        letters = torch.tensor([reward.ear.spell("ab") + [reward.ear.space] + reward.ear.spell("a")])
        loss = torch.nn.functional.ctc_loss(
            torch.tensor(log_probs)[:, None], letters, [len(log_probs)], [4], blank=reward.ear.blank, reduction="none"
        )
        assert outcome.value == pytest.approx(math.exp(-loss.item() / 4), rel=1e-5)
        assert outcome.detail["heard"] == reward.ear.transcribe([spoken.utterance.waveform], 16_000)[0]
        first, second = outcome.detail["words"]
        assert (first["place"], first["expected"], second["place"], second["expected"]) == (0, "ab", 1, "a")
        assert {first["heard"], second["heard"]} <= {"ab", "a", None}
        assert 0 <= first["start"] < first["end"] <= second["start"] < second["end"] <= spoken.utterance.seconds + 0.02


def test_a_word_is_heard_when_its_letters_are_clear(folder):
    reward = reward_of(folder, word_credit=1)
    a, b = reward.ear.spell("ab")
    sure = np.full((5, 31), -20.0)
    for frame, letter in enumerate([a, reward.ear.space, b, reward.ear.blank, reward.ear.blank]):
        sure[frame, letter] = 0.0
    reward.ear.log_probs = lambda waveforms, rate: [sure] * len(waveforms)
    right, wrong = reward([answer("a b", rate=16_000), answer("a a", rate=16_000)])
    assert right.value == pytest.approx(1) and right.detail["wer"] == 0
    assert wrong.value == pytest.approx(math.exp(-20 / 3)) and wrong.detail["wer"] == 0.5
    assert [mark["heard"] for mark in wrong.detail["words"]] == ["a", None]


def test_what_cannot_be_judged(folder):
    silent, wordless, broken, foreign = reward_of(folder)(
        [
            answer("a", waveform=np.zeros(16_000, np.float32), rate=16_000),
            answer("?!"),
            answer("a", broken="no end"),
            answer("ж"),
        ]
    )
    assert silent == Scored(0.0, {"heard": "", "wer": 1.0})
    assert wordless == Invalid("no words in the text") and broken == Invalid("no end")
    assert foreign == Unavailable("the ear has no letter 'ж'")


def test_rows_are_looked_at_before_anything_is_spoken(folder):
    def row(line, text):
        return Example(id="q", messages=(Message("user", text),), question_text=text, file="rows.jsonl", line=line)

    reward = reward_of(folder, reference="prompt")
    reward.check([row(1, "a cat")])
    with pytest.raises(InputError, match=r"rows.jsonl:3: messages: 'жа': the ear has no letter 'ж'"):
        reward.check([row(1, "a cat"), row(3, "жа")])
    with pytest.raises(InputError, match="rows.jsonl:4: messages: expected words to say"):
        reward.check([row(4, "?!")])


def test_capitals_where_the_ear_has_only_those(folder, tmp_path):
    reward = reward_of(folder)
    small = reward.ear.spell("ab")
    vocabulary = {token.upper(): n for token, n in reward.ear.processor.tokenizer.get_vocab().items()}
    reward.ear.processor.tokenizer.get_vocab = lambda: vocabulary
    assert reward.ear.spell("ab") == small


def test_only_a_ctc_ear_has_a_likelihood(tmp_path):
    with pytest.raises(ValidationError, match="likelihood: expected an ear of kind transformers, got pocketsphinx"):
        AsrSpec(kind="asr", form="likelihood")
    whisper = tiny_models.whisper(tmp_path / "whisper")
    with pytest.raises(InputError, match="form: likelihood: expected a CTC model of single letters"):
        reward_of(whisper)
    assert json.loads((whisper / "config.json").read_text())["model_type"] == "whisper"
