import numpy as np

from elocute.speech import features


def test_log_mel_equals_the_naive_power_spectrum():
    signal = np.random.default_rng(0).normal(size=1600) * 0.1
    found = features.log_mel(signal)
    window, filters = np.hanning(400), features.mel_filters(512)
    for frame in (0, 4, 9):
        centre = frame * 160 + 80
        piece = np.array([signal[i] if 0 <= i < 1600 else 0.0 for i in range(centre - 200, centre + 200)]) * window
        bins = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512) @ piece
        power = filters @ (np.abs(bins) ** 2 / (window**2).sum())
        assert np.allclose(found[frame], 10 * np.log10(power + 1e-10), atol=1e-6)


def test_cosines_are_orthonormal_and_keep_smooth_envelopes():
    basis = features.cosines()
    assert np.allclose(basis.T @ basis, np.eye(features.CEPSTRA))
    smooth = 10 * np.cos(np.linspace(0, 6, features.N_MELS))
    assert np.abs(basis @ (basis.T @ smooth) - smooth).max() < 1.0


def test_patches_do_not_depend_on_level_and_energy_follows_it():
    sound = np.random.default_rng(1).normal(size=features.BLOCK * 4) * 0.05
    plain, louder = features.measure(sound), features.measure(sound * 4)
    assert np.allclose(plain.patches, louder.patches, atol=1e-3)
    assert np.allclose(louder.energy - plain.energy, 20 * np.log10(4), atol=1e-3)


def test_whole_blocks_pads_the_end_only():
    assert [len(features.whole_blocks(np.ones(n))) for n in (0, 1, 1280, 1281)] == [0, 1280, 1280, 2560]
    padded = features.whole_blocks(np.ones(1300))
    assert padded[:1300].all() and not padded[1300:].any()
