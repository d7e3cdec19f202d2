import numpy as np
import torch

from elocute.speech import features
from elocute.speech.decoder import FRAME, Synthesizer, contour, exponential, pulse_train


def test_synthesizer_equals_filtering_piece_by_piece():
    """Against a naive float64 twin: every 10 ms piece is convolved with its own minimum-phase response."""
    draw = np.random.default_rng(0)
    steps, fft = 6, 512
    envelope = draw.normal(-1, 0.5, (steps, features.N_MELS))
    source = draw.standard_normal(steps * FRAME)
    points = features.mel_points(features.N_MELS + 2)[1:-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * FRAME) / (2 * FRAME))
    padded = np.pad(source, FRAME // 2)
    expected = np.zeros(steps * FRAME + fft)
    for step in range(steps):
        log_magnitude = np.interp(np.arange(fft // 2 + 1) * 16000 / fft, points, envelope[step])
        cepstrum = np.fft.irfft(log_magnitude, fft)
        cepstrum[1 : fft // 2] *= 2
        cepstrum[fft // 2 + 1 :] = 0
        response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), fft)
        piece = padded[step * FRAME : step * FRAME + 2 * FRAME] * window
        expected[step * FRAME : step * FRAME + fft] += np.convolve(piece, response)[:fft]
    silent = torch.full((1, steps, features.N_MELS), -40.0)
    made = Synthesizer()(
        torch.tensor(envelope, dtype=torch.float32)[None], silent,
        torch.tensor(source, dtype=torch.float32)[None], torch.zeros(1, steps * FRAME),
    )[0]  # fmt: skip
    expected = expected[FRAME // 2 : FRAME // 2 + steps * FRAME]
    assert np.abs(made.numpy() - expected).max() < 1e-2 * np.abs(expected).max()


def test_exponential_is_that_of_complex_numbers():
    real, imaginary = 3 * torch.randn(2, 50, 60, generator=torch.Generator().manual_seed(0))
    naive = torch.exp(torch.complex(real.double(), imaginary.double()))
    assert ((exponential(real, imaginary) - naive).abs() < 1e-6 * naive.abs()).all()


def test_flat_envelope_gives_the_source_back():
    source = torch.randn(1, 10 * FRAME, generator=torch.Generator().manual_seed(0))
    flat = torch.zeros(1, 10, features.N_MELS)
    made = Synthesizer()(flat, flat - 40, source, torch.zeros_like(source))
    inside = slice(FRAME // 2, -FRAME // 2)  # the ends have one piece where the rest has two
    assert torch.allclose(made[:, inside], source[:, inside], atol=1e-4)


def test_pulse_train_has_unit_power_and_one_pulse_a_period():
    pulses = pulse_train(np.full(200, 125.0))
    assert abs(np.mean(pulses**2) - 1) < 0.05
    assert 124 <= (pulses > 0.9 * pulses.max()).sum() <= 126
    turns = np.arange(1, 641) * 125 / 16000
    sum_of_cosines = sum(np.cos(2 * np.pi * k * turns) for k in range(1, 65)) * np.sqrt(2 / 64)
    assert np.allclose(pulses[:640], sum_of_cosines, atol=1e-3)


def test_contour_is_linear_between_known_values_and_flat_outside():
    values, known = np.array([9.0, 1.0, 9.0, 3.0]), np.array([False, True, False, True])
    line = contour(values, known, 2, 0.0)
    assert np.allclose(line, [1, 1, 1, 1.25, 1.75, 2.25, 2.75, 3])
    assert np.allclose(contour(values, np.zeros(4, dtype=bool), 2, 7.0), 7.0)
