"""The emotion classifier, the speaker's voice and DNSMOS, with tiny models of random weights."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_models
import tiny_onnx
import torch
from answers import answer
from voices import RATE, voice

from elocute.data.audio import load_audio, resample, save_wav
from elocute.data.types import AudioRef
from elocute.errors import InputError
from elocute.rewards.dnsmos import SAMPLES, DnsmosReward, dnsmos_windows
from elocute.rewards.emotion import EmotionReward
from elocute.rewards.outcome import Invalid, Scored
from elocute.rewards.speaker import SpeakerReward

SOUNDS = [voice(110, 1.2), voice(240, 2.0, octaves=1), voice(90, 0.3), voice(170, 1.5, level=0.02)]


def spoken(waveform, emotion="happy", rate=RATE):
    return answer("", waveform=waveform, rate=rate, question="say it", labels={"emotion": emotion})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_models.audio_classifier(tmp_path_factory.mktemp("emotion") / "model")


def test_emotion_is_the_models_own_probability(classifier):
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    extractor = AutoFeatureExtractor.from_pretrained(classifier)
    model = AutoModelForAudioClassification.from_pretrained(classifier).eval()
    with torch.inference_mode():
        logits = model(**extractor(SOUNDS[0], sampling_rate=RATE, return_tensors="pt")).logits
    naive = logits.double().softmax(-1)[0].numpy()
    reward = EmotionReward("emotion", classifier, device="cpu")
    found = [reward([spoken(SOUNDS[0], label)])[0].value for label in ("Neutral", "HAPPY", "sad")]
    assert found == pytest.approx(naive, abs=1e-6) and sum(found) == pytest.approx(1)


def test_a_batch_is_heard_as_each_alone(classifier):
    reward = EmotionReward("emotion", classifier, device="cpu")
    answers = [spoken(sound) for sound in SOUNDS]
    values = [o.value for o in reward(answers)]
    assert values == [reward([a])[0].value for a in answers]
    assert max(values) - min(values) > 0.01  # the sound matters


def test_labels_are_mapped_and_added(classifier):
    mapped = EmotionReward("emotion", classifier, label_map={"Positive": ["happy", "neutral"]}, device="cpu")
    plain = EmotionReward("emotion", classifier, device="cpu")
    parts = [plain([spoken(SOUNDS[1], label)])[0].value for label in ("happy", "neutral")]
    assert mapped([spoken(SOUNDS[1], "Positive")])[0].value == pytest.approx(sum(parts))
    with pytest.raises(
        InputError, match=r"rows.jsonl:7: labels.emotion: expected one of neutral, happy, sad, Positive, got 'Bored'"
    ):
        mapped.check([spoken(SOUNDS[0], "Bored").example])
    with pytest.raises(InputError, match="label_map: 'glad' is not one of the model's labels: neutral, happy, sad"):
        EmotionReward("emotion", classifier, label_map={"Happy": ["glad"]}, device="cpu")


def test_the_label_heard_is_by_the_rows_name_for_it(classifier):
    plain = EmotionReward("emotion", classifier, device="cpu")
    outcomes = {label: plain([spoken(SOUNDS[1], label)])[0] for label in ("neutral", "happy", "sad")}
    best = max(outcomes, key=lambda label: outcomes[label].value)
    others = [label for label in outcomes if label != best]
    assert all(outcome.detail == {"heard": {"emotion": best}} for outcome in outcomes.values())
    assert plain([spoken(SOUNDS[1], best.upper())])[0].detail == {"heard": {"emotion": best.upper()}}
    mapped = EmotionReward("emotion", classifier, label_map={"Own": [best]}, device="cpu")
    for asked in ("Own", others[0]):
        assert mapped([spoken(SOUNDS[1], asked)])[0].detail == {"heard": {"emotion": "Own"}}
    assert plain.dimensions == ("emotion",)
    with pytest.raises(InputError, match="label_map: Happy: expected the model's label of this name in its list"):
        EmotionReward("emotion", classifier, label_map={"Happy": ["sad"]}, device="cpu")


def test_other_rates_and_no_sound(classifier):
    reward = EmotionReward("emotion", classifier, device="cpu")
    slow = np.repeat(SOUNDS[0], 3)  # the same voice, three times as many samples a second
    scored, mute = reward([spoken(slow, rate=3 * RATE), spoken(np.zeros(0, np.float32))])
    assert scored.value == pytest.approx(reward([spoken(SOUNDS[0])])[0].value, abs=0.05) and mute == Invalid(
        "empty audio"
    )


@pytest.fixture(scope="module")
def voices_model(tmp_path_factory):
    return tiny_models.x_vectors(tmp_path_factory.mktemp("speaker") / "model")


def test_the_same_voice_is_itself(voices_model, tmp_path):
    save_wav(tmp_path / "voice.wav", SOUNDS[1], RATE)
    reward = SpeakerReward("speaker", voices_model, reference=tmp_path / "voice.wav", device="cpu")
    same, other = reward([spoken(SOUNDS[1]), spoken(SOUNDS[0])])
    assert same.value == pytest.approx(1, abs=1e-4) and -1 <= other.value < same.value
    assert other.detail == {"similarity": other.value}
    assert reward([spoken(SOUNDS[0])]) == [other]


def test_the_rows_own_recording_is_the_reference(voices_model, tmp_path):
    save_wav(tmp_path / "own.wav", SOUNDS[2], RATE)
    reward = SpeakerReward("speaker", voices_model, device="cpu")
    asked = spoken(SOUNDS[2])
    with pytest.raises(InputError, match="rows.jsonl:7: sft_target_audio: expected a recording of the voice"):
        reward.check([asked.example])
    asked = replace(asked, example=replace(asked.example, target_audio=AudioRef(tmp_path / "own.wav")))
    reward.check([asked.example])
    assert reward([asked])[0].value == pytest.approx(1, abs=1e-3)


def test_dnsmos_windows_are_nine_seconds():
    """As many as dnsmos_local.py has: ⌊seconds⌋ − 9 of what is doubled until it is long enough, less its rounding."""
    sounds = [np.arange(int(seconds * RATE), dtype=np.float32) for seconds in (2.5, 6.3, 9.01, 10.99, 11, 25)]
    assert [len(dnsmos_windows(w)) for w in sounds] == [1, 3, 1, 1, 2, 7]
    assert all(len(w) == SAMPLES and w.dtype == np.float32 for sound in sounds for w in dnsmos_windows(sound))
    assert dnsmos_windows(sounds[0])[0][40_000] == 0 and dnsmos_windows(sounds[-1])[1][0] == RATE


def test_dnsmos_maps_the_networks_outputs_to_the_listeners_scale(tmp_path):
    """The network: signal, background and overall are 2, 3 and 4 times the mean of the samples."""
    path = tiny_onnx.mean_times(tmp_path / "sig_bak_ovr.onnx", [2.0, 3.0, 4.0])
    (outcome,) = DnsmosReward("dnsmos", path)([spoken(np.full(RATE, 0.8, np.float32))])
    signal, background, overall = 1.6, 2.4, 3.2
    assert outcome.detail == pytest.approx(
        {
            "signal": -0.08397278 * signal**2 + 1.22083953 * signal + 0.0052439,
            "background": -0.13166888 * background**2 + 1.60915514 * background - 0.39604546,
            "overall": -0.06766283 * overall**2 + 1.11546468 * overall + 0.04602535,
        },
        abs=1e-3,  # of a mean over 144160 float32 samples
    )
    assert isinstance(outcome, Scored) and outcome.value == outcome.detail["overall"]


@pytest.mark.skipif(find_spec("speechmos") is None, reason="the extra dnsmos is missing")
def test_dnsmos_itself_hears_noise(tmp_path):
    """The published weights, by the arithmetic of dnsmos_local.py written out, and what they think of noise."""
    reward = DnsmosReward("dnsmos")
    clean, rate = load_audio("starter/audio/heldout-sum-0000.question.wav")
    clean = np.resize(resample(clean, rate, RATE), int(5.1 * RATE))  # one window when doubled
    noisy = clean + 0.05 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    outcomes = reward([spoken(clean), spoken(noisy)])
    for sound, outcome in zip((clean, noisy), outcomes, strict=True):
        audio = sound
        while len(audio) < 9.01 * RATE:
            audio = np.append(audio, audio)
        scores = []
        for i in range(int(np.floor(len(audio) / RATE) - 9.01) + 1):
            window = audio[i * RATE : int((i + 9.01) * RATE)].astype("float32")[np.newaxis, :]
            if window.shape[1] < 9.01 * RATE:
                continue
            signal, background, overall = reward.session.run(None, {"input_1": window})[0][0]
            scores.append(np.poly1d([-0.06766283, 1.11546468, 0.04602535])(overall))
        assert outcome.value == pytest.approx(np.mean(scores), abs=1e-5)
    assert outcomes[0].value > outcomes[1].value + 0.5
    assert outcomes[0].detail["background"] > outcomes[1].detail["background"] + 1


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no.onnx: cannot be opened as an ONNX model"):
        DnsmosReward("dnsmos", tmp_path / "no.onnx")
