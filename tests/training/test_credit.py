"""Wrong words' speech has its own advantage: where it falls, what it adds to the loss, when it is refused."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import TtsLM
from elocute.models.layout import Layout
from elocute.recipe import load_recipe
from elocute.recipe.rewards import deciding
from elocute.recipe.schema import PolicyGradient
from elocute.rewards.build import build_reward
from elocute.rewards.combine import build_mixer
from elocute.rewards.outcome import Invalid, Scored
from elocute.rollout import Rollout
from elocute.speech.codec import StarterCodec
from elocute.training.credit import check_credit, group_credit, unit_times
from elocute.training.experience import Experience
from elocute.training.policy import load_policy
from elocute.training.trainer import Trainer
from elocute.training.update import Update
from tests.models.tts_folders import tts_lm

LAYOUT = Layout("speech-only", first_unit=10, n_units=5, text_end=None, answer_end=3, speech_begin=2)
SPEC = PolicyGradient(scope="speech")
WEIGHT = 0.5


@given(st.lists(st.integers(0, 4), max_size=9), st.booleans(), st.floats(0.3, 2))
def test_times_of_tokens(units, ended, seconds):
    ids = torch.tensor([2, *(10 + unit for unit in units), *([3] if ended else [])])
    times = unit_times(LAYOUT, ids, 5.0, seconds).tolist()
    expected = [math.nan] + [min((n + 0.5) / 5, seconds) for n in range(len(units))]
    expected += [expected[-1]] if ended else []
    assert times == pytest.approx(expected, nan_ok=True)
    assert all(time < seconds for time in times if not math.isnan(time))


def mark(place, expected, heard, start, end):
    return {"place": place, "expected": expected, "heard": heard, "start": start, "end": end}


def test_only_the_words_that_differ_in_the_group_are_credited():
    """Three answers to "one two three": right; "two" wrong and a word put in; not judged. Ten tokens a second."""
    right = [mark(0, "one", "one", 0, 0.2), mark(1, "two", "two", 0.2, 0.5), mark(2, "three", "three", 0.5, 0.8)]
    wrong = [mark(0, "one", "one", 0, 0.2), mark(1, "two", "too", 0.2, 0.4)]
    wrong += [mark(2, None, "uh", 0.4, 0.6), mark(2, "three", "three", 0.6, 0.8)]
    times = torch.arange(8).double() / 10 + 0.05
    found = group_credit([right, wrong, None], [times, times, times[:3]], SPEC)
    gain = 0.5 / (0.5 + 1e-4)
    assert found[0].tolist() == pytest.approx([0, 0, gain, gain, gain, 0, 0, 0])
    assert found[1].tolist() == pytest.approx([0, 0, -gain, -gain, -gain, -gain, 0, 0])
    assert found[2].tolist() == [0, 0, 0]
    assert not any(row.any() for row in group_credit([right, right, None], [times] * 3, SPEC))
    assert not any(row.any() for row in group_credit([wrong, None], [times] * 2, SPEC))


def test_the_order_of_answers_is_invisible():
    groups = [[mark(0, "a", heard, 0, 0.3), mark(1, "b", None, 0.3, 0.5)] for heard in ("a", "b", None, "a")]
    times = [torch.arange(n).double() / 10 for n in (5, 6, 3, 9)]
    found = group_credit(groups, times, SPEC)
    again = group_credit(groups[::-1], times[::-1], SPEC)[::-1]
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))


# with a real recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tts")
    tts_lm(folder, prompt="<|text|>{labels}{text}").save(folder / "model")
    (folder / "words.txt").write_text("fifty two\nfifty three\nninety\n")
    (folder / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "Fifty-two."}]}\n')
    return folder


def make_recipe(folder: Path, *overrides: str, credit: float = WEIGHT):
    ear = f"{{kind: pocketsphinx, vocabulary: '{folder / 'words.txt'}'}}"
    given_ = [f"model={folder / 'model'}", "run_dir=unused", f"data.train={folder / 'rows.jsonl'}", "data.eval=null"]
    given_ += [f"rewards=[{{kind: asr, word_credit: {credit}, ear: {ear}}}]", "objective.policy_gradient.scope=speech"]
    given_ += ["objective.mixing={kind: fixed, value: 1}", "objective.kl={text: 0, speech: 0}", "optim.micro_batch=2"]
    return load_recipe("recipes/starter/wavalign.yaml", [*given_, *overrides])


EXAMPLE = Example("x", (Message("user", "Fifty-two."),), file="rows.jsonl", line=1)


def experience_of(lm: TtsLM, recipe, spoken: list[str], spoilt: tuple[int, ...] = ()) -> Experience:
    """One group: what the starter's voice says, as if it had been sampled, judged by the recipe's rewards.

    spoilt: units of the first answer that are of the wrong kind.
    """
    audio, prompt = EncodedAudio(lm.codec), lm.encode_prompt(EXAMPLE)
    stores = [AudioRef(Path("starter/data/answers.safetensors"), key) for key in spoken]
    tokens = [lm.encode_target(replace(EXAMPLE, target_audio=ref), audio) for ref in stores]
    for unit in spoilt:  # behind the token that begins the speech; a block is one prosody unit and four spectral ones
        tokens[0].ids[1 + unit] = lm.layout.first_unit + (0 if unit % 5 == 0 else lm.codec.shape.codebook)
    draw = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(prompt, t, torch.randn(len(t), generator=draw) - 7, t.ids * 0.0, None, False, 0) for t in tokens
    ]
    answers = [lm.answer(EXAMPLE, t.ids) for t in tokens]
    judged = build_mixer(recipe.rewards, recipe.reward_mix)(answers, [0] * len(answers))
    rewards = torch.tensor([judged.values], dtype=torch.float64)
    return Experience(rollouts, answers, judged, rewards, torch.ones_like(rewards, dtype=torch.bool), slice(0, 1))


class Rows:
    """What Trainer.rollout_rows needs of a trainer."""

    def __init__(self, recipe, lm):
        self.recipe, self.lm = recipe, lm


SPOKEN = ["fifty_two", "fifty_three", "fifty_two", "ninety"]


def test_the_wrong_word_of_what_was_heard_is_blamed_and_no_other(folder):
    recipe = make_recipe(folder)
    lm = load_policy(recipe).lm
    experience = experience_of(lm, recipe, SPOKEN[:3])
    assert experience.rewards.tolist() == [[1, math.exp(-1.25), 1]]
    credit = Trainer.rollout_rows(Rows(recipe, lm), experience).credit
    for row, outcome, rollout in zip(credit, experience.judged.outcomes["asr"], experience.rollouts, strict=True):
        fifty, two = outcome.detail["words"]
        first = round(two["start"] * lm.codec.units_per_second)
        units = len(rollout.tokens) - 2
        last = min(round(two["end"] * lm.codec.units_per_second), units)
        assert fifty["end"] == two["start"] and 0 < first < last
        assert not row[: 1 + first].any() and not row[2 + last :].any()
        value = WEIGHT / math.sqrt(2) if two["heard"] == "two" else -WEIGHT * math.sqrt(2)
        assert row[1 + first : 1 + last].tolist() == pytest.approx([value] * (last - first), rel=1e-3)


def token_rows(network, prompt, ids):
    logits = network(input_ids=torch.cat([prompt, ids])[None]).logits[0]
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("normaliser", ["sequence", "token"])
@pytest.mark.parametrize("credit", [0, WEIGHT])
def test_loss_and_gradient_are_the_twins(folder, credit, normaliser):
    """In float64, token by token: A_i + w · the word's own advantage, found from marks and times by plain loops."""
    recipe = make_recipe(folder, f"objective.policy_gradient.normaliser={normaliser}", credit=credit)
    policy = load_policy(recipe)
    lm = policy.lm
    experience = experience_of(lm, recipe, SPOKEN)
    rows = Trainer.rollout_rows(Rows(recipe, lm), experience)
    assert (rows.credit is None) == (credit == 0)
    totals = Update(recipe, policy, None, Accelerator(cpu=True))(rows, None, 1.0).values
    network = copy.deepcopy(policy.network).double()
    network.zero_grad()
    rewards, loss = experience.rewards[0].tolist(), 0.0
    mean = sum(rewards) / 4
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 4)
    counts = [int(rollout.tokens.action.sum()) for rollout in experience.rollouts]
    marks = [outcome.detail.get("words") for outcome in experience.judged.outcomes["asr"]]
    credited = 0
    for i, rollout in enumerate(experience.rollouts):
        logp = token_rows(network, rollout.prompt, rollout.tokens.ids)
        units = len(rollout.tokens) - 2
        for t in range(1, len(rollout.tokens)):
            advantage = (rewards[i] - mean) / (std + 1e-4)
            if credit:
                time = (min(t, units) - 0.5) / lm.codec.units_per_second
                own = []
                for place, one in enumerate(marks[i]):
                    rights = [float(of[place]["expected"] == of[place]["heard"]) for of in marks]
                    part = sum(rights) / 4
                    if one["start"] <= time < one["end"]:
                        own.append((rights[i] - part) / (math.sqrt(part * (1 - part)) + 1e-4))
                advantage += credit * (sum(own) / len(own) if own else 0)
                credited += bool(own and sum(own))
            value = logp[t, rollout.tokens.ids[t]]
            weight = min(math.exp(float(value.detach()) - float(rollout.logprob[t])), recipe.rollout.importance_cap)
            ratio = torch.exp(value - value.detach())
            loss = loss - weight * ratio * advantage / (counts[i] * 4 if normaliser == "sequence" else sum(counts))
    loss.backward()
    assert totals["loss/pg"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-7)
    assert totals.get("pg/credited", 0) == credited
    for (name, ours), theirs in zip(policy.network.named_parameters(), network.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).norm() <= 3e-5 * theirs.grad.norm(), name


def with_units(folder: Path, *overrides: str, units: str = "prosody", gate: str = "", first: int | None = None):
    """Words count for all tokens; how long the answer takes counts by itself, for some units."""
    (folder / "long.py").write_text("def long(waveforms): return [len(waveform) / 16000 for waveform in waveforms]\n")
    ear = f"{{kind: pocketsphinx, vocabulary: '{folder / 'words.txt'}'}}"
    long = f"{{kind: function, name: long, function: '{folder / 'long.py'}:long', low: 0, high: 9, weight: 0, "
    long += f"unit_credit: {{units: {units}, weight: 0.7, first: {first or 'null'}}}{gate}}}"
    return make_recipe(folder, f"rewards=[{{kind: asr, ear: {ear}}}, {long}]", *overrides)


@pytest.mark.parametrize("gate", ["", ", gate: {reward: asr, at_least: 0.9}"])
@pytest.mark.parametrize(("units", "first"), [("prosody", None), ("prosody", 1), ("spectral", None), ("spectral", 3)])
def test_a_reward_credits_the_units_that_carry_it(folder, units, first, gate):
    """Token by token: 0.7 times the reward's own advantage where the unit is of its kind, nothing elsewhere; and
    nothing behind the first ones, where only those are asked for."""
    recipe = with_units(folder, units=units, gate=gate, first=first)
    lm = load_policy(recipe).lm
    experience = experience_of(lm, recipe, SPOKEN)
    rows = Trainer.rollout_rows(Rows(recipe, lm), experience)
    heard, long = ([outcome.value for outcome in experience.judged.outcomes[name]] for name in ("asr", "long"))
    assert len(set(long)) == 3 and experience.judged.values == heard  # weight 0: not in the sum
    counted = [0.0 if gate and right < 0.9 else value for right, value in zip(heard, long, strict=True)]
    mean = sum(counted) / 4
    std = math.sqrt(sum((value - mean) ** 2 for value in counted) / 4)
    start, prosody = lm.layout.first_unit, lm.layout.first_unit + lm.codec.shape.codebook
    mine = range(prosody, start + lm.codec.n_units) if units == "prosody" else range(start, prosody)
    seen = set()
    for value, rollout, row in zip(counted, experience.rollouts, rows.credit.tolist(), strict=True):
        left = math.inf if first is None else first
        for token, given_ in zip(rollout.tokens.ids.tolist(), row, strict=False):
            own = token in mine and left > 0
            left -= token in mine
            assert given_ == pytest.approx(0.7 * (value - mean) / (std + 1e-4) if own else 0, abs=1e-6)
            seen.add(own)
        assert not any(row[len(rollout.tokens) :])
    assert seen == {True, False}


def test_what_a_reward_of_its_own_units_finds_broken_is_broken(folder):
    recipe = with_units(folder)
    lm = load_policy(recipe).lm
    answers = experience_of(lm, recipe, SPOKEN[:2]).answers
    mixer = build_mixer(recipe.rewards, recipe.reward_mix)
    outcomes = {"asr": [Scored(1.0), Scored(1.0)], "long": [Invalid("nothing to measure"), Scored(1.0)]}
    assert mixer.combine(outcomes, [0] * len(answers)).values == [0.0, 1.0]
    mixer.close()


def test_a_reward_that_credits_units_decides_the_run(folder):
    said = with_units(folder).model_dump(mode="json")
    assert set(deciding(said["rewards"], None)) == {"asr", "long"}  # though long has weight 0
    said["rewards"][1]["unit_credit"] = None
    assert set(deciding(said["rewards"], None)) == {"asr"}
    said["rewards"][0] |= {"weight": 0, "word_credit": 1}
    assert set(deciding(said["rewards"], None)) == {"asr"}


def test_a_whole_step_with_and_without(folder, tmp_path):
    for credit in (0, 0.5):
        small = ["rollout.group_size=4", "rollout.prompts_per_step=2", "rollout.max_new_tokens=48", "steps=1"]
        small += [f"run_dir={tmp_path / str(credit)}", "report=false"]
        trainer, lines = Trainer(make_recipe(folder, *small, credit=credit)), []
        trainer.train(lambda step, metrics, lines=lines: lines.append(metrics))
        assert ("pg/credited" in lines[0]) == (credit > 0)
        if credit:
            assert 0 <= lines[0]["pg/credited"] <= 1


@pytest.mark.parametrize("unit", [10, 13])
def test_the_unit_that_broke_an_answer_takes_the_blame(folder, unit):
    """Twenty times the answer's advantage, whose other tokens have none. A second wrong unit is not blamed."""
    recipe = make_recipe(folder, "objective.policy_gradient.blame=20", credit=0)
    lm = load_policy(recipe).lm
    experience = experience_of(lm, recipe, SPOKEN, spoilt=(unit, 17))
    assert experience.judged.counts["invalid"] == 1 and experience.answers[0].utterance.broken_unit == unit
    rows = Trainer.rollout_rows(Rows(recipe, lm), experience)
    found = rows.advantage[:, None] + rows.credit
    assert rows.advantage[0] < 0 and not rows.credit[1:].any()
    for token in range(len(experience.rollouts[0].tokens)):
        expected = 20 * float(rows.advantage[0]) if token == 1 + unit else 0
        assert float(found[0, token]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_an_answer_that_no_unit_broke_is_blamed_as_a_whole(folder):
    recipe = make_recipe(folder, "objective.policy_gradient.blame=20", credit=0)
    lm = load_policy(recipe).lm
    experience = experience_of(lm, recipe, SPOKEN)
    spoken = experience.answers[0]
    for broken in ("no end", None):
        experience.answers[0] = replace(spoken, utterance=replace(spoken.utterance, broken=broken))
        assert not Trainer.rollout_rows(Rows(recipe, lm), experience).credit.any()


# where it does not fit


def test_a_unit_is_blamed_only_where_units_are_trained_and_of_some_kind(folder, tmp_path, monkeypatch):
    recipe = {
        scope: make_recipe(folder, f"objective.policy_gradient={{scope: {scope}, blame: 20}}", credit=0)
        for scope in ("text", "speech")
    }
    lm = load_policy(recipe["text"]).lm
    with pytest.raises(InputError, match="^objective.policy_gradient: blame: expected none, the scope is text"):
        check_credit(recipe["text"], lm)
    check_credit(recipe["speech"], lm)
    monkeypatch.setattr(lm.codec, "parts", {})
    with pytest.raises(InputError, match="blame: expected none, the codec's units have no parts"):
        check_credit(recipe["speech"], lm)


def test_unit_credit_needs_speech_in_the_scope_and_a_codec_with_parts(folder, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="rewards: long: unit_credit: expected a policy gradient whose scope is speech"
    ):
        with_units(folder, "objective.policy_gradient.scope=text")
    run = f"run_dir={tmp_path / 'run'}"
    with pytest.raises(InputError, match="^rewards: long: unit_credit: units: expected spectral or prosody, got 'f0'"):
        Trainer(with_units(folder, run, units="f0"))
    monkeypatch.setattr(StarterCodec, "parts", property(lambda self: {}, lambda self, parts: None), raising=False)
    with pytest.raises(InputError, match="expected no unit_credit, the codec's units have no parts, got 'prosody'"):
        Trainer(with_units(folder, run))


def test_word_credit_needs_speech_in_the_scope_and_a_policy_gradient(folder):
    for wrong in ("objective.policy_gradient.scope=text", "objective.mixing={kind: fixed, value: 0}"):
        with pytest.raises(InputError, match="rewards: asr: word_credit: expected a policy gradient whose scope is"):
            make_recipe(folder, wrong)
    assert build_reward(make_recipe(folder).rewards[0]).timed


def test_word_credit_needs_a_tts_model_and_units_of_a_constant_rate(folder, tiny_lm, tmp_path, monkeypatch):
    tiny_lm.save(tmp_path / "model")
    rows = "data.train=starter/data/train.jsonl"
    with pytest.raises(InputError, match="^rewards: asr: word_credit: only for TTS models"):
        Trainer(make_recipe(folder, f"model={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", rows))
    monkeypatch.delattr(StarterCodec, "units_per_second")
    with pytest.raises(InputError, match="^rewards: asr: word_credit: the codec's units have no constant rate"):
        Trainer(make_recipe(folder, f"run_dir={tmp_path / 'run'}"))
