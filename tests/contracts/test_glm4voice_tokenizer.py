"""GLM-4-Voice's tokenizer: its equations, the published folder, units that depend on the recording alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.speech.glm4voice.tokenizer import SpeechTokenizer, WhisperVQ
from tests.contracts import glm4voice, glm4voice_naive
from tests.contracts.glm4voice import TOKENIZER, speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glm4voice") / "glm-4-voice-tokenizer"
    glm4voice.tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> SpeechTokenizer:
    return SpeechTokenizer.load(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


# the equations


@pytest.mark.parametrize("samples", [1, 1280, 9999, 16000 * 2 + 700])
def test_states_and_units_are_those_of_a_naive_float64_encoder(folder, tokenizer, samples):
    """From one unit to several blocks; 700 samples more than whole units leave frames of padding in the last one."""
    weights, sound = load_file(folder / "model.safetensors"), speech(3)[:samples]
    features, mask = tokenizer.features(sound)
    assert features.shape[2] % 8 == 0 and int(mask.sum()) == -(-samples // 160)
    expected = glm4voice_naive.states(weights, TOKENIZER, features[0].numpy(), int(mask.sum()))
    with torch.inference_mode():
        states = tokenizer.model.cpu().pooled(features, mask)[0].numpy()
    assert np.abs(states - expected).max() < 1e-5
    far = ((expected[:, None] - weights["codebook.weight"].double().numpy()) ** 2).sum(-1)
    units = tokenizer.encode(sound, 16000)
    assert units.dtype == np.int64 and units.tolist() == far.argmin(1)[: len(units)].tolist()


def test_the_tiny_codebook_is_used(tokenizer):
    units = tokenizer.encode(speech(20), 16000)
    assert len(np.unique(units)) > glm4voice.UNITS / 2


def test_a_block_hears_itself_to_its_end_and_nothing_after(tokenizer):
    """Blocks of 10 frames at 50 Hz in the tiny checkpoint: mel frames 20 … 39 are the second one."""
    features, mask = tokenizer.features(speech(1.2))
    model = tokenizer.model.cpu()

    def frames(features):
        seen = []
        hook = model.layers[-1].register_forward_hook(lambda module, given, out: seen.append(out[0]))
        with torch.inference_mode():
            model.pooled(features, mask)
        hook.remove()
        return seen[0]

    plain, last = frames(features), features.clone()
    last[:, :, 38:40] += 1
    moved = (frames(last) - plain).abs().amax(1) > 1e-6
    assert not moved[:10].any() and moved[10:20].all()
    after = features.clone()
    after[:, :, 40:] += 1
    moved = (frames(after) - plain).abs().amax(1) > 1e-6
    assert not moved[:20].any() and moved[20:].all()


def test_convolutions_are_causal_and_pad_nothing_on_the_right(tokenizer):
    model, config = tokenizer.model, WhisperConfig.from_dict(TOKENIZER | {"quantize_causal_block_size": 1})
    config._attn_implementation = "sdpa"
    causal = WhisperVQ(config).eval().requires_grad_(False)
    causal.load_state_dict(model.state_dict())
    features, mask = tokenizer.features(speech(0.8))
    changed = features.clone()
    changed[:, :, 32:] += 1
    with torch.inference_mode():
        one, other = causal.pooled(features, mask), causal.pooled(changed, mask)
    assert one.shape == (1, 10, 16)
    assert torch.equal(one[:, :4], other[:, :4]) and not torch.isclose(one[:, 4:], other[:, 4:]).all(-1).any()


# lengths, padding, batches


@settings(max_examples=15)
@given(st.integers(0, 5000))
def test_there_is_a_unit_for_every_1280_samples_begun(tokenizer, samples):
    units = tokenizer.encode(np.full(samples, 0.1, dtype=np.float32), 16000)
    assert len(units) == -(-samples // 1280) == tokenizer.length(samples)


def test_padded_in_a_batch_the_same_features_give_the_same_units(tokenizer):
    (short, _), (long, _) = tokenizer.features(speech(1.28)), tokenizer.features(speech(3.2, seed=3))
    mask = torch.ones(2, long.shape[2], dtype=torch.bool)
    mask[0, short.shape[2] :] = False
    both = torch.cat([torch.nn.functional.pad(short, (0, long.shape[2] - short.shape[2]), value=-1.5), long])
    model = tokenizer.model.cpu()
    with torch.inference_mode():
        batch = model.pooled(both, mask)
        assert torch.allclose(batch[0, :16], model.pooled(short, mask[:1, : short.shape[2]])[0], atol=1e-5)
        assert torch.allclose(batch[1], model.pooled(long, mask[1:])[0], atol=1e-5)
        assert torch.equal(model(both, mask)[0, :16], model(short, mask[:1, : short.shape[2]])[0])


def test_pieces_of_30_s_start_at_position_0_and_are_padded_to_the_longest(tokenizer):
    sound = speech(31.5)
    units = tokenizer.encode(sound, 16000)
    assert len(units) == tokenizer.length(len(sound)) == 375 + 19
    assert np.array_equal(units[:375], tokenizer.encode(sound[:480000], 16000))
    alone = tokenizer.encode(sound[480000:], 16000)
    assert np.array_equal(units[375:-1], alone[:-1])  # what stands behind the end is in the last unit
    features, mask = tokenizer.features(sound)
    alone, _ = tokenizer.features(np.pad(sound[480000:], (0, 480000 - 24000)))
    assert features.shape == (2, 128, 3000) and mask.sum(1).tolist() == [3000, 150]
    assert torch.equal(features[1], alone[0])


def test_log_mel_is_scaled_by_the_piece_s_own_loudest(tokenizer):
    loud, quiet = speech(30), 1e-3 * speech(2, seed=5)
    features, _ = tokenizer.features(np.concatenate([loud, quiet]))
    alone, _ = tokenizer.features(quiet)
    assert torch.allclose(features[1, :, :198], alone[0, :, :198], atol=1e-5)


def test_any_rate_is_resampled_first(tokenizer):
    sound = speech(1.5, rate=22050)
    assert np.array_equal(tokenizer.encode(sound, 22050), tokenizer.encode(resample(sound, 22050, 16000), 16000))


def test_two_channels_are_a_mistake_of_the_caller(tokenizer):
    with pytest.raises(ValueError, match=r"mono waveform of shape \[samples\]"):
        tokenizer.encode(np.zeros((2, 100)), 16000)


# files


def test_what_is_saved_is_the_same_to_the_byte(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    for file in folder.iterdir():
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    again = SpeechTokenizer.load(tmp_path / "saved")
    again.save(tmp_path / "saved")  # onto itself
    assert again.digest == tokenizer.digest == SpeechTokenizer.load(tmp_path / "saved").digest
    assert np.array_equal(again.encode(speech(2), 16000), tokenizer.encode(speech(2), 16000))


def test_the_digest_sees_every_file(copy, tokenizer):
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"dither": 0.0}))
    assert SpeechTokenizer.load(copy).digest != tokenizer.digest


def test_the_whole_model_s_layout_loads_without_what_lies_above_the_codebook(copy, tokenizer):
    state = load_file(copy / "model.safetensors")
    whole = {f"model.encoder.{name}": tensor for name, tensor in state.items()}
    for name in ("layers.2.fc1.weight", "layers.3.final_layer_norm.bias", "layer_norm.weight", "layer_norm.bias"):
        whole[f"model.encoder.{name}"] = torch.zeros(2)
    whole["model.decoder.embed_tokens.weight"] = torch.zeros(2)
    save_file(whole, copy / "model.safetensors")
    assert np.array_equal(SpeechTokenizer.load(copy).encode(speech(2), 16000), tokenizer.encode(speech(2), 16000))


def test_what_training_left_behind_may_be_missing(copy):
    state = load_file(copy / "model.safetensors")
    spare = ("embed_positions2.weight", "ema_count", "ema_weight")
    save_file({name: tensor for name, tensor in state.items() if name not in spare}, copy / "model.safetensors")
    assert len(SpeechTokenizer.load(copy).encode(speech(1), 16000)) == 13


def rewrite(file: Path, **changes) -> None:
    said = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value != "gone"}
    file.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantize_vocab_size": "gone"}, "quantize_vocab_size: expected a positive number .* got None"),
        ({"d_model": "16"}, "d_model: expected a positive number .* got '16'"),
        ({"pooling_position": 1}, "pooling_position: expected that of the codebook, 2"),
        ({"pooling_type": "max"}, "pooling_type: expected \"avg\", as published, got 'max'"),
        ({"encoder_causal_convolution": False}, "encoder_causal_convolution: expected true"),
        ({"quantize_causal_encoder": True}, "quantize_causal_encoder: expected false"),
        ({"d_model": 18}, r"conv1.weight: the config says \[18, 128, 3\], the weights \[16, 128, 3\]"),
        ({"quantize_vocab_size": 40}, r"codebook.weight: the config says \[40, 16\], the weights \[48, 16\]"),
        ({"quantize_position": 3, "pooling_position": 3}, "the weights lack layers.2"),
        ({"encoder_attention_heads": 3}, "cannot be built: embed_dim must be divisible by num_heads"),
        ({"num_mel_bins": 80}, "feature_size: expected 80, as in config.json"),
        ({"max_source_positions": 1000}, "pieces of 480000 samples: the positions of config.json hold 320000"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, change, said):
    rewrite(copy / "config.json", **change)
    with pytest.raises(InputError, match=said) as error:
        SpeechTokenizer.load(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_a_strange_or_missing_weight_is_named(copy):
    state = load_file(copy / "model.safetensors")
    save_file(state | {"conv3.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(InputError, match="the weights hold conv3.weight, for which the config has no place"):
        SpeechTokenizer.load(copy)
    del state["layers.1.fc1.bias"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(InputError, match="the weights lack layers.1.fc1.bias"):
        SpeechTokenizer.load(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_or_holds_rubbish_is_refused(copy, name):
    (copy / name).write_text("rubbish")
    with pytest.raises(InputError, match=rf"{name}: not .*"):
        SpeechTokenizer.load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"not a speech tokenizer of GLM-4-Voice: there is no {name}"):
        SpeechTokenizer.load(copy)


def test_the_published_size_is_that_of_the_published_file():
    """1.46 GB in float32, with the codebook's running means and the positions above it."""
    published = {
        "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32,
        "quantize_position": 16, "pooling_position": 16, "quantize_vocab_size": 16384,
        "quantize_causal_block_size": 200,
    }  # fmt: skip
    with torch.device("meta"):
        model = WhisperVQ(WhisperConfig.from_dict(TOKENIZER | published))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    spare = 375 * 1280 + 16384 * 1280 + 16384
    assert round(4 * (parameters + spare) / 1e9, 2) == 1.46
