"""The features of FunASR's encoders, against their definition."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.speech import kaldi
from elocute.speech.kaldi import FrontEnd, fbank, n_features, read_statistics, resample, stack_frames


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def naive_fbank(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's log-mel frames, float64, a frame and a band at a time."""

    def mel(hz):
        return 1127 * math.log(1 + hz / 700)

    low, step = mel(20), (mel(8000) - mel(20)) / 81
    frames = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64) * 32768
        frame = frame - frame.mean()
        frame = np.array([frame[0] - 0.97 * frame[0], *(frame[1:] - 0.97 * frame[:-1])])
        frame *= [0.54 - 0.46 * math.cos(2 * math.pi * n / 399) for n in range(400)]
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        bands = []
        for band in range(80):
            left, centre, right = (low + step * (band + edge) for edge in range(3))
            total = 0.0
            for bin in range(257):
                place = mel(bin * 16000 / 512)
                weight = min((place - left) / (centre - left), (right - place) / (right - centre))
                total += max(0.0, weight) * power[bin]
            bands.append(math.log(max(total, np.finfo(np.float32).eps)))
        frames.append(bands)
    return np.array(frames)


def test_fbank_is_its_definition():
    waveform = noise(1600)
    found = fbank(torch.from_numpy(waveform))
    assert found.shape == (8, 80) and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), naive_fbank(waveform), atol=2e-4)


def test_silence_is_the_floor():
    assert fbank(torch.zeros(400)).unique().tolist() == [pytest.approx(math.log(2**-23))]


def test_samples_are_heard_on_the_scale_of_16_bits():
    """4 in amplitude is 2·ln 4 in log power, at full scale as below."""
    quiet, loud = (fbank(torch.from_numpy(noise(800)) * gain) for gain in (0.1, 0.4))
    torch.testing.assert_close(loud - quiet, torch.full_like(quiet, 2 * math.log(4)), atol=1e-3, rtol=0)


def test_a_constant_offset_is_not_heard():
    waveform = torch.from_numpy(noise(800))
    torch.testing.assert_close(fbank(waveform + 0.25), fbank(waveform), atol=5e-2, rtol=0)


@pytest.mark.parametrize(("seconds", "features"), [(1, 17), (5, 83), (30, 500)])
def test_published_counts(seconds, features):
    assert n_features(seconds * 16000) == features


@given(st.integers(1, 40))
def test_frames_are_stacked_by_seven_every_six(count):
    frames = torch.arange(count * 80.0).view(count, 80)
    padded = [frames[0]] * 3 + list(frames)
    rows = []
    for row in range(math.ceil(count / 6)):
        rows.append(torch.cat([padded[min(6 * row + i, len(padded) - 1)] for i in range(7)]))
    torch.testing.assert_close(stack_frames(frames), torch.stack(rows))


@given(st.integers(400, 9000))
def test_there_are_as_many_features_as_announced(samples):
    assert (
        len(stack_frames(fbank(torch.zeros(samples))))
        == n_features(samples)
        == math.ceil((1 + (samples - 400) // 160) / 6)
    )


def statistics(file: Path, shift, rescale) -> Path:
    rows = (" ".join(map(str, values)) for values in (shift, rescale))
    text = "<Nnet>\n<Splice> 560 560\n[ 0 ]\n<AddShift> 560 560\n<LearnRateCoef> 0 [ {} ]\n"
    text += "<Rescale> 560 560\n<LearnRateCoef> 0 [ {} ]\n</Nnet>\n"
    file.write_text(text.format(*rows))
    return file


def test_features_are_shifted_then_scaled(tmp_path):
    front_end = FrontEnd.load(statistics(tmp_path / "am.mvn", [-7.5] * 560, [*[0.5] * 559, 2.0]))
    waveform = noise(16000)
    plain = stack_frames(fbank(torch.from_numpy(waveform)))
    found = front_end(waveform, 16000)
    torch.testing.assert_close(found[:, :-1], (plain[:, :-1] - 7.5) * 0.5)
    torch.testing.assert_close(found[:, -1], (plain[:, -1] - 7.5) * 2)
    assert found.dtype == torch.float32 and torch.equal(found, front_end(waveform, 16000))


def test_dither_is_noise_of_its_own_generator(tmp_path):
    file = statistics(tmp_path / "am.mvn", [0] * 560, [1] * 560)
    quiet, dithered = FrontEnd.load(file), FrontEnd.load(file, dither=1.0)
    waveform = noise(4000)
    first, again = (dithered(waveform, 16000, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert 0 < (first - quiet(waveform, 16000)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<Nnet> </Nnet>", "<AddShift>: expected it"),
        ("<AddShift> 560 560 <LearnRateCoef> 0 [ 1 2 3 ]", "<AddShift>: expected 560 finite numbers, got 3"),
        ("<AddShift> [ " + "0 " * 560 + "]", "<Rescale>: expected it"),
        ("<AddShift> [ " + "0 " * 559 + "nan ] <Rescale> [ 1 ]", "<AddShift>: expected 560 finite"),
        ("<AddShift> [ one ]", "<AddShift>: expected it"),
    ],
)
def test_what_are_no_statistics_is_refused(tmp_path, text, message):
    (tmp_path / "am.mvn").write_text(text)
    with pytest.raises(InputError, match=message):
        read_statistics(tmp_path / "am.mvn")


def test_statistics_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match="am.mvn: not the statistics"):
        read_statistics(tmp_path / "am.mvn")


def test_audio_shorter_than_a_frame_is_refused(tmp_path):
    front_end = FrontEnd.load(statistics(tmp_path / "am.mvn", [0] * 560, [1] * 560))
    assert len(front_end(noise(400), 16000)) == 1
    with pytest.raises(InputError, match="too short to hear: 24.9 ms"):
        front_end(noise(399), 16000)


def naive_resample(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """Every output sample a sum over all input samples: float64."""
    lower = min(old, new) * 0.99
    out = []
    for place in range(math.ceil(len(waveform) * new / old)):
        distance = (np.arange(len(waveform)) / old - place / new) * lower  # in zero crossings
        window = np.where(abs(distance) < 6, np.cos(np.clip(distance, -6, 6) * math.pi / 12) ** 2, 0)
        out.append((waveform * np.sinc(distance) * window).sum() * lower / old)
    return np.array(out)


@pytest.mark.parametrize(("old", "new"), [(24000, 16000), (22050, 16000), (8000, 16000), (48000, 16000)])
def test_resampling_is_its_definition(old, new):
    waveform = noise(501)
    found = resample(torch.from_numpy(waveform), old, new)
    np.testing.assert_allclose(found.numpy(), naive_resample(waveform, old, new), atol=2e-6)


def test_a_tone_stays_the_tone_it_was():
    time = np.arange(44100) / 44100
    found = resample(torch.from_numpy(np.sin(2 * np.pi * 440 * time).astype(np.float32)), 44100, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(found.numpy()[100:-100], expected[100:-100], atol=2e-3)
    assert resample(found, 16000, 16000) is found


def test_the_triangles_cover_the_range():
    triangles = kaldi.mel_triangles()
    assert triangles.shape == (80, 256) and (triangles.sum(1) > 0).all()
    assert triangles[:, 0].sum() == 0 and triangles.max() <= 1
