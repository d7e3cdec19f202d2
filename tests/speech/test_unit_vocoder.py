"""The unit vocoder: its equations, the published layout, and nothing run from a file."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from elocute.errors import InputError
from elocute.speech.unit_vocoder import UnitVocoder
from tests.speech import unit_models
from tests.speech.unit_models import UNITS, VOCODER


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vocoder")
    unit_models.vocoder(folder / "g.pt", folder / "g.json")
    return folder / "g.pt", folder / "g.json"


@pytest.fixture(scope="module")
def vocoder(published) -> UnitVocoder:
    return UnitVocoder.load(*published)


def naive_vocoder(state: dict[str, torch.Tensor], config: dict, units: list[int]) -> tuple[np.ndarray, list[int]]:
    """Waveform and durations by the equations, float64, from weights in their published two parts."""
    state = {name: tensor.double().numpy() for name, tensor in state.items()}

    def kernel(name):
        if f"{name}.weight" in state:
            return state[f"{name}.weight"], state[f"{name}.bias"]
        direction = state[f"{name}.weight_v"]
        rows = [g * v / np.sqrt((v**2).sum()) for g, v in zip(state[f"{name}.weight_g"], direction, strict=True)]
        return np.stack(rows), state[f"{name}.bias"]

    def convolve(x, name, dilation=1, pad=None):  # x [C, T]
        weight, bias = kernel(name)
        size = weight.shape[2]
        pad = dilation * (size - 1) // 2 if pad is None else pad
        x = np.pad(x, ((0, 0), (pad, pad)))
        length = x.shape[1] - dilation * (size - 1)
        taps = (weight[:, :, k] @ x[:, k * dilation : k * dilation + length] for k in range(size))
        return sum(taps) + bias[:, None]

    def spread(x, name, rate):  # every input sample adds its kernel to the output
        weight, bias = kernel(name)
        size = weight.shape[2]
        out = np.zeros((weight.shape[1], (x.shape[1] - 1) * rate + size))
        for t in range(x.shape[1]):
            out[:, t * rate : t * rate + size] += np.einsum("i,iok->ok", x[:, t], weight)
        pad = (size - rate) // 2
        return out[:, pad : out.shape[1] - pad] + bias[:, None]

    def leaky(x, slope):
        return np.where(x > 0, x, slope * x)

    def norm(x, name):  # x [C, T], over C
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        return x * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]

    embedded = state["dict.weight"][units].T
    p = norm(np.maximum(convolve(embedded, "dur_predictor.conv1.0"), 0), "dur_predictor.ln1")
    p = norm(np.maximum(convolve(p, "dur_predictor.conv2.0", pad=1), 0), "dur_predictor.ln2")
    p = state["dur_predictor.proj.weight"] @ p + state["dur_predictor.proj.bias"][:, None]
    durations = [max(1, int(np.round(np.exp(value) - 1))) for value in p[0]]
    x = convolve(np.repeat(embedded, durations, axis=1), "conv_pre")
    blocks = len(config["resblock_kernel_sizes"])
    for stage, rate in enumerate(config["upsample_rates"]):
        x = spread(leaky(x, 0.1), f"ups.{stage}", rate)
        parts = []
        for block, dilations in enumerate(config["resblock_dilation_sizes"]):
            y, name = x, f"resblocks.{stage * blocks + block}"
            for index, dilation in enumerate(dilations):
                inner = convolve(leaky(y, 0.1), f"{name}.convs1.{index}", dilation)
                y = y + convolve(leaky(inner, 0.1), f"{name}.convs2.{index}")
            parts.append(y)
        x = sum(parts) / blocks
    return np.tanh(convolve(leaky(x, 0.01), "conv_post"))[0], durations


@settings(max_examples=5)
@given(st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=5))
def test_the_published_layout_sounds_as_a_naive_float64_vocoder(published, vocoder, units):
    state = torch.load(published[0], weights_only=True)["generator"]
    expected, durations = naive_vocoder(state, VOCODER, units)
    embedded = vocoder.dict(torch.tensor(units))
    assert vocoder.dur_predictor(embedded).tolist() == durations
    sound = vocoder(np.array(units))
    assert sound.dtype == np.float32 and len(sound) == 640 * sum(durations) == vocoder.hop * sum(durations)
    assert np.abs(sound - expected).max() < 1e-4


def test_durations_differ_and_are_at_least_one(vocoder):
    durations = vocoder.dur_predictor(vocoder.dict(torch.arange(UNITS)))
    assert durations.min() >= 1 and len(durations.unique()) > 1


def test_weight_norm_is_folded_as_torch_does_it(published, vocoder):
    """The same file in a network that torch's own weight norm was put on."""
    normed, plain = UnitVocoder(VOCODER), dict(vocoder.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = names(published[0])
        normal = {name: part for name, part in normed.named_modules() if f"{name}.weight_v" in found}
        for part in normal.values():
            torch.nn.utils.weight_norm(part)
    normed.load_state_dict(torch.load(published[0], weights_only=True)["generator"])
    normed(np.array([3, 1, 4]))
    assert len(normal) > 60
    for name, part in normal.items():
        assert torch.allclose(part.weight, plain[name].weight, atol=1e-6)


def names(file: Path) -> list[str]:
    return list(torch.load(file, weights_only=True, mmap=True)["generator"])


def test_old_and_new_files_of_torch_load(published, vocoder, tmp_path):
    state = torch.load(published[0], weights_only=True)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    again = UnitVocoder.load(tmp_path / "old.pt", published[1])
    assert np.array_equal(again(np.arange(9)), vocoder(np.arange(9)))


def test_what_is_saved_is_plain_safetensors_and_sounds_the_same(vocoder, tmp_path):
    vocoder.save(tmp_path)
    assert not [name for name in load_file(tmp_path / "vocoder.safetensors") if name.endswith(("_g", "_v"))]
    again = UnitVocoder.load(tmp_path / "vocoder.safetensors", tmp_path / "vocoder.json")
    assert np.array_equal(again(np.arange(9)), vocoder(np.arange(9)))


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_file_that_would_run_something_is_refused(published, tmp_path):
    torch.save({"generator": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match=r"trap.pt: not a published unit vocoder[^\n]*$"):
        UnitVocoder.load(tmp_path / "trap.pt", published[1])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", {"state": {}}, [1]])
def test_a_file_that_is_no_vocoder_is_refused(published, tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x.pt: not a published unit vocoder[^\n]*$"):
        UnitVocoder.load(tmp_path / "x.pt", published[1])
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a vocoder's safetensors file"):
        UnitVocoder.load(tmp_path / "x.safetensors", published[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_embeddings": 30}, "does not fit .*size mismatch for dict.weight"),
        ({"upsample_rates": [5, 4, 4, 4]}, "does not fit"),
        ({"dur_predictor_params": None}, "dur_predictor_params: missing"),
        ({"multispkr": "_"}, "multispkr: expected a vocoder of one voice"),
        ({"f0": True}, "f0: expected a vocoder of one voice"),
        ({"resblock": "2"}, "resblock: expected 1, got '2'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(published, tmp_path, change, said):
    (tmp_path / "g.json").write_text(json.dumps(VOCODER | change))
    with pytest.raises(InputError, match=said):
        UnitVocoder.load(published[0], tmp_path / "g.json")
