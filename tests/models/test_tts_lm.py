"""TTS LMs: what a text and its labels become, what is an action, what is refused."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models import TtsLM, check_model, load_model
from elocute.models.batch import make_batch
from elocute.objectives.tokens import scope_mask
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from tests.models.tts_folders import CONTEXT, PROMPTS, TOKENS, tts_lm

TEXT = "the train leaves at nine"
HAPPY = {"speed": "Fast", "emotion": "Happy"}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> TtsLM:
    return tts_lm(tmp_path_factory.mktemp("tts"))


@pytest.fixture(scope="module")
def saved(lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    lm.save(folder)
    return folder


def row(text=TEXT, labels=None, **fields) -> Example:
    columns = {} if labels is None else {"labels": labels}
    return Example("x", (Message("user", text),), columns=columns, file="rows.jsonl", line=7, **fields)


def said(lm: TtsLM, units) -> AudioRef:
    return AudioRef(Path("said.wav"), units=tuple(units), codec=lm.codec.digest)


# what goes in


@pytest.mark.parametrize(
    ("kind", "labels", "written"),
    [
        ("tokens", HAPPY, f"<|text|><|emotion:Happy|><|speed:Fast|>{TEXT}"),
        ("tokens", {"emotion": "Very Sad", "speed": None}, f"<|text|><|emotion:Very Sad|>{TEXT}"),
        ("tokens", None, f"<|text|>{TEXT}"),
        ("words", HAPPY, f"<|text|>(emotion: Happy, speed: Fast) {TEXT}"),
        ("words", {}, f"<|text|>{TEXT}"),
        ("none", {"emotion": ""}, f"<|text|>{TEXT}"),
    ],
)
def test_a_prompt_is_the_template_with_text_and_labels(tmp_path, kind, labels, written):
    lm = tts_lm(tmp_path, kind)
    ids = lm.encode_prompt(row(labels=labels))
    assert ids.tolist() == lm.tokenizer.encode(written, add_special_tokens=False)
    vocabulary = lm.tokenizer.get_vocab()
    assert ids[0] == vocabulary["<|text|>"]
    if kind == "tokens" and labels == HAPPY:  # each label is one token
        assert ids[1:3].tolist() == [vocabulary["<|emotion:Happy|>"], vocabulary["<|speed:Fast|>"]]


def test_what_is_written_in_a_text_fills_no_place_and_is_no_control_token(lm):
    control = set(lm.tokenizer.get_added_vocab().values())

    @settings(max_examples=40)
    @given(st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from([{}, HAPPY]))
    def check(text, labels):
        assume("<|" not in text)
        text = f"{text}{{labels}} {{text}}"
        ids = lm.template.encode(text, labels).tolist()
        assert sum(id in control for id in ids) == 1 + len(labels)
        assert lm.tokenizer.decode(ids[1 + len(labels) :]).strip() == text.strip()

    check()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (row("nine <|speech_end|>"), "text: the text holds the control token '<|speech_end|>'"),
        (row("nine <|emotion:Happy|>"), "text: the text holds the control token '<|emotion:Happy|>'"),
        (row(" "), "text: expected a text to speak, got nothing"),
        (row(labels={"emotion": "happy"}), "labels.emotion: no such label: 'happy'; nearest: Happy"),
        (row(labels={"mood": "Happy"}), "labels.mood: no such dimension; nearest: emotion"),
        (row(labels={"speed": 3}), "labels.speed: expected a label such as Slow, got 3"),
        (row(labels="Happy"), 'labels: expected {"dimension": "label"}, got "Happy"'),
        (
            row(audios=(AudioRef(Path("a.wav")),)),
            "messages: expected one, the text to speak, and no audio; got 1 and 1",
        ),
        (replace(row(), messages=row().messages * 2), "messages: expected one, the text to speak, and no audio"),
        (row("nine " * CONTEXT), f"messages: too long: at least {CONTEXT + 3} tokens, the model's context holds"),
    ],
)
def test_what_cannot_be_spoken_is_refused_with_its_row(lm, example, message):
    with pytest.raises(InputError) as caught:
        lm.encode_prompt(example)
    assert str(caught.value).startswith(f"rows.jsonl:7: {message}") and "\n" not in str(caught.value)


def test_a_model_without_a_place_for_labels_takes_none(tmp_path):
    with pytest.raises(InputError, match="rows.jsonl:7: labels: expected none, the model's prompt has no place"):
        tts_lm(tmp_path, "none").encode_prompt(row(labels=HAPPY))


# what comes out


@given(st.lists(st.integers(0, 1151), min_size=1, max_size=30))
def test_defect_rlaif_3_every_speech_token_and_the_end_of_speech_is_an_action(lm, units):
    """Nothing but the marker before the speech is forced, and the speech scope is all that was sampled."""
    audio = EncodedAudio(lm.codec)
    example = row(target_audio=said(lm, units), rejected_audio=said(lm, units[::-1]), target_text="never used")
    for tokens, spoken in (
        (lm.encode_target(example, audio), units),
        (lm.encode_rejected(example, audio), units[::-1]),
    ):
        layout = lm.layout
        assert tokens.ids.tolist() == [
            layout.speech_begin, *(layout.first_unit + unit for unit in spoken), layout.answer_end
        ]  # fmt: skip
        speech = scope_mask(tokens.text[None], tokens.action[None], "speech")[0]
        assert speech.tolist() == [False, *[True] * (len(units) + 1)] and not tokens.text.any()
        cursor = layout.read(tokens.ids)
        assert (cursor.broken, cursor.done, cursor.units) == (None, True, spoken)


def test_an_answer_has_the_text_that_should_be_heard(lm):
    tokens = lm.encode_target(row(target_audio=said(lm, [1030, 0, 1, 2, 3])), EncodedAudio(lm.codec))
    answer = lm.answer(row(), tokens.ids)
    assert (answer.utterance.text, answer.utterance.broken) == (TEXT, None)
    assert len(answer.utterance.waveform) == 1280 and answer.example == row()
    assert lm.answer(row(), tokens.ids[:-1]).utterance.broken.startswith("no end")


def test_targets_that_do_not_fit_are_refused(lm):
    audio = EncodedAudio(lm.codec)
    with pytest.raises(InputError, match="^rows.jsonl:7: sft_target_audio: expected the answer's speech"):
        lm.encode_target(row(), audio)
    with pytest.raises(InputError, match="^rows.jsonl:7: sft_target_audio: too long: at least"):
        lm.encode_target(row(target_audio=said(lm, [1030, 0, 1, 2, 3] * 60)), audio)
    with pytest.raises(InputError, match="^rows.jsonl:7: the answer was cut before its end"):
        lm.encode_target(row(target_audio=replace(said(lm, [1030, 0, 1, 2, 3]), cut=True)), audio)


# sampling and scoring


def rollouts_of(lm, temperature=0.8, groups=3):
    labels = [HAPPY, {}, {"speed": "Slow"}]
    prompts = [lm.encode_prompt(row(text, of)) for text, of in zip(("one", TEXT, "two three"), labels, strict=True)]
    seeds = [[10 * n + k for k in range(groups)] for n in range(3)]
    return prompts, seeds, sample_groups(lm, prompts, seeds, Sampling(40, temperature))


def test_padding_is_invisible_in_sampling(lm):
    prompts, seeds, groups = rollouts_of(lm)
    for prompt, own, group in zip(prompts, seeds, groups, strict=True):
        for seed, rollout in zip(own, group, strict=True):
            [[alone]] = sample_groups(lm, [prompt], [[seed]], Sampling(40, 0.8))
            assert alone.tokens.ids.equal(rollout.tokens.ids)
            assert torch.allclose(alone.logprob, rollout.logprob, atol=1e-5)


def naive(lm, prompt, ids, temperature) -> torch.Tensor:
    """Log-probs [T] by the whole network in float64, one row, the prompt before it."""
    logits = copy.deepcopy(lm.model).double()(torch.cat([prompt, ids])[None]).logits[0] / temperature
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, ids[:, None])[:, 0]


@pytest.mark.parametrize("share_prompts", [True, False])
def test_score_equals_sample_and_is_the_twins(lm, share_prompts):
    rollouts = [rollout for group in rollouts_of(lm)[2] for rollout in group]
    longest = max(len(r.tokens) for r in rollouts)
    selected = torch.zeros(len(rollouts), longest, dtype=torch.bool)
    for index, rollout in enumerate(rollouts):
        selected[index, : len(rollout.tokens)] = rollout.tokens.action
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], selected, "cpu")
    with torch.no_grad():
        logp, _ = Policy(lm, share_prompts=share_prompts)(batch, 0.8)
        twin = torch.cat([naive(lm, r.prompt, r.tokens.ids, 0.8)[r.tokens.action] for r in rollouts])
    sampled = torch.cat([r.logprob[r.tokens.action] for r in rollouts])
    assert torch.allclose(logp, sampled, atol=1e-5) and torch.allclose(logp.double(), twin, atol=1e-5)
    assert any(r.broken is None for r in rollouts)
    for rollout in rollouts:
        assert not rollout.tokens.text.any() and rollout.tokens.action.tolist() == [False] + [True] * (
            len(rollout.tokens) - 1
        )


# folders


def test_a_saved_model_is_loaded_with_its_schema_and_its_adapter_merged(lm, saved, tmp_path):
    again = load_model(saved)
    assert isinstance(again, TtsLM) and again.layout == lm.layout and again.codec.digest == lm.codec.digest
    assert again.template.schema == lm.template.schema
    assert again.encode_prompt(row(labels=HAPPY)).equal(lm.encode_prompt(row(labels=HAPPY)))
    again.model = get_peft_model(again.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    again.save(tmp_path)
    ids = again.encode_prompt(row(labels=HAPPY))[None]
    assert torch.allclose(load_model(tmp_path).model(ids).logits, again.model(ids).logits, atol=1e-5)
    assert not torch.allclose(again.model(ids).logits, lm.model(ids).logits, atol=1e-3)
    again.save(tmp_path)  # over itself
    assert (tmp_path / "schema.yaml").read_bytes() == (saved / "schema.yaml").read_bytes()


def test_shipped_schemas_are_named_and_go_with_the_model(tmp_path):
    for schema, emotions in ((None, 5), ("rlaif_spa", 10)):
        lm = tts_lm(tmp_path, "words", **({} if schema is None else {"schema": schema}))
        if schema is None:
            del lm.settings["schema"]
            lm.save(tmp_path / "none")
            (tmp_path / "none/schema.yaml").unlink()
            said_ = json.loads((tmp_path / "none/elocute.json").read_text())
            del said_["schema"]
            (tmp_path / "none/elocute.json").write_text(json.dumps(said_))
            lm = load_model(tmp_path / "none")
        assert len(lm.template.schema.dimensions["emotion"].labels) == emotions
        lm.save(tmp_path / "kept")
        assert load_model(tmp_path / "kept").template.schema == lm.template.schema
        assert (tmp_path / "kept/schema.yaml").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "elocute.json: prompt: not understood: None"),
        ({"codec": 3}, "elocute.json: codec: not understood: 3"),
        ({"ratio": "speech-only"}, "elocute.json: ratio: unknown key"),
        ({"prompt": "<|text|>"}, "prompt: expected {text} once, {labels} and {text} once each, or {instruction} once"),
        ({"prompt": "{labels}{text}{text}"}, "prompt: expected {text} once"),
        ({"prompt": "{instruction}{text}"}, "prompt: expected {text} once"),
        ({"label_token": None}, "label_token: expected, with {labels} in the prompt and only then, a token's name"),
        ({"label_token": "<|{label}|>"}, "label_token: expected, with {labels}"),
        ({"prompt": "{text}"}, "label_token: expected, with {labels}"),
        ({"label_token": "[{dimension}:{label}]"}, "no token '[emotion:Neutral]' for the label 'Neutral' of emotion"),
        ({"schema": 3}, "schema: expected a file or paper or rlaif_spa, got 3"),
        ({"schema": "nowhere.yaml"}, "nowhere.yaml: cannot read the prosody schema"),
        ({"tokens": {"unit_0": "<|audio_0|>"}}, "tokens: expected unit_0, speech_end, speech_begin, got unit_0"),
        ({"tokens": TOKENS | {"text_end": "x"}}, "tokens: expected unit_0, speech_end, speech_begin, got"),
        ({"tokens": TOKENS | {"speech_end": "<|x|>"}}, "the tokenizer has no token '<|x|>' that elocute.json names"),
        ({"tokens": TOKENS | {"speech_end": "<|audio_9|>"}}, "'<|audio_9|>' lies among the 1152 speech units"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_before_its_weights_are_read(saved, tmp_path, change, message):
    for file in saved.iterdir():
        if file.name not in ("model.safetensors", "elocute.json"):
            (tmp_path / file.name).symlink_to(file)
    told = json.loads((saved / "elocute.json").read_text())
    (tmp_path / "elocute.json").write_text(json.dumps(told))
    check_model(tmp_path)
    (tmp_path / "elocute.json").write_text(json.dumps(told | change))
    with pytest.raises(InputError) as caught:
        check_model(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_are_checked_without_the_weights(saved):
    check_model(saved, [row(), row(labels=HAPPY)])
    with pytest.raises(InputError) as caught:
        check_model(saved, [row(labels={"emotion": "Glad"}), row(), row("<|text|>")])
    first, second = str(caught.value).splitlines()
    assert "labels.emotion: no such label: 'Glad'" in first and "control token '<|text|>'" in second


def test_a_model_without_a_marker_before_speech(tmp_path):
    tokens = {name: token for name, token in TOKENS.items() if name != "speech_begin"}
    lm = tts_lm(tmp_path, "words", tokens=tokens)
    answer = lm.encode_target(row(target_audio=said(lm, [1030, 0, 1, 2, 3])), EncodedAudio(lm.codec))
    assert len(answer) == 6 and answer.action.all()
    assert PROMPTS["words"]["prompt"] == lm.template.prompt
