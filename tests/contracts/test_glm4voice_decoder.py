"""GLM-4-Voice's decoder and codec: their equations, the published folders, noise of their own."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from elocute.errors import InputError
from elocute.speech import load_codec
from elocute.speech.glm4voice.codec import Glm4VoiceCodec
from elocute.speech.glm4voice.decoder import SpeechDecoder
from elocute.speech.glm4voice.encoder import at_distances
from elocute.speech.glm4voice.files import read_tagged_yaml
from elocute.speech.glm4voice.flow import Flow, time_grid
from elocute.speech.glm4voice.vocoder import Hift
from elocute.speech.units import BrokenUnits
from tests.contracts import glm4voice, glm4voice_naive
from tests.contracts.glm4voice import UNITS, speech
from tests.contracts.glm4voice_naive import Naive


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glm4voice")
    glm4voice.codec(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder) -> Glm4VoiceCodec:
    return load_codec(folder)


@pytest.fixture(scope="module")
def decoder(codec) -> SpeechDecoder:
    return codec.decoder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def units_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, UNITS, count)


# the equations


@pytest.mark.parametrize("count", [1, 10, 23])
def test_the_mean_is_that_of_a_naive_float64_conformer(decoder, count):
    """One unit, a block, two blocks and the start of a third."""
    expected = glm4voice_naive.mean(Naive(glm4voice.flow_weights()), units_of(count))
    with torch.inference_mode():
        mean = decoder.flow.cpu().mean(torch.from_numpy(units_of(count)))[0].numpy()
    assert mean.shape == (8, int(6.890625 * count)) and np.abs(mean - expected).max() < 1e-5


def test_a_unit_hears_its_block_of_ten_to_the_end_and_nothing_after(decoder):
    encoder, embedded = decoder.flow.encoder.cpu(), torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, embedded[:, 19] = encoder(embedded), 0
        moved = (encoder(embedded) - plain).abs().amax(-1)[0] > 1e-6
    assert not moved[:10].any() and moved[10:].all()


def test_scores_at_distances_are_put_where_row_minus_column_is_that_distance():
    distances = torch.arange(4, -5, -1.0).expand(1, 2, 5, 9)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    assert torch.equal(at_distances(distances), (rows - columns).expand(1, 2, 5, 5))


@pytest.mark.parametrize("frames", [13, 20])
def test_the_velocity_is_that_of_a_naive_float64_u_net(decoder, frames):
    """An odd length, too: what is halved and doubled again is one frame longer and is cut."""
    x = np.random.default_rng(frames).standard_normal((32, frames))
    expected = glm4voice_naive.estimate(Naive(glm4voice.flow_weights()), x, 0.37, heads=2)
    with torch.inference_mode():
        found = decoder.flow.decoder.estimator.cpu()(torch.tensor(x[None], dtype=torch.float32), torch.tensor([0.37]))
    assert np.abs(found[0].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("speaker", [np.zeros(12), np.arange(12.0) - 3])
def test_the_spectrum_is_that_of_naive_guided_euler_steps(decoder, speaker):
    noise = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(5))[0].numpy()
    expected = glm4voice_naive.log_mel(glm4voice.flow_weights(), units_of(3), noise, 4, speaker)
    given = torch.from_numpy(units_of(3)), torch.Generator().manual_seed(5), 4
    with torch.inference_mode():
        found = decoder.flow.cpu()(*given, torch.from_numpy(speaker)).numpy()
    assert np.abs(found - expected).max() < 1e-4
    if not speaker.any():
        with torch.inference_mode():
            assert torch.equal(decoder.flow.voice()[0], decoder.flow.spk_embed_affine_layer.bias)
            found = decoder.flow(given[0], torch.Generator().manual_seed(5), 4).numpy()
        assert np.abs(found - expected).max() < 1e-4


def test_times_lie_closer_at_the_start():
    times = time_grid(10, torch.zeros(1))
    assert torch.allclose(times, 1 - torch.cos(torch.arange(11) * torch.pi / 20)) and len(times) == 11
    assert (times[1:] - times[:-1]).diff().gt(0).all()


def test_the_waveform_is_that_of_a_naive_float64_decoder_seeded_with_42(decoder):
    """The noise of flow, phases and source in the original's order.

    A rounded spectrum gives a rounded pitch, whose phase drifts away sample by sample: hence the tolerance.
    """
    found = decoder(units_of(4), steps=3)
    expected = glm4voice_naive.waveform(glm4voice.flow_weights(), glm4voice.hift_weights(), units_of(4), steps=3)
    assert found.dtype == np.float32 and found.shape == expected.shape == (256 * 27,)
    assert np.abs(found - expected).max() < 5e-4 and expected.std() > 0.05


def test_pitch_source_and_sound_are_those_of_a_naive_float64_vocoder(decoder):
    """Each from the same input, voiced and unvoiced frames."""
    vocoder, naive = decoder.vocoder.cpu(), Naive(glm4voice.hift_weights())
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(1, 8, 30, generator=generator)
    drawn = generator.get_state()
    phases, noise = torch.rand(1, 9, 1, generator=generator), torch.randn(1, 9, 256 * 30, generator=generator)
    with torch.inference_mode():
        f0 = vocoder.f0_predictor(mel)
        source = vocoder.m_source(f0.repeat_interleave(256, 1), generator.set_state(drawn))
        sound = vocoder.sound(mel, source)
    assert 0 < (f0 > 10).sum() < f0.numel()
    assert np.abs(f0[0].numpy() - glm4voice_naive.pitch(naive, mel[0].double().numpy())).max() < 1e-3
    given = f0[0].double().numpy(), (2 * np.pi * phases - np.pi)[0, :, 0].double().numpy(), noise[0].double().numpy()
    assert np.abs(source[0].numpy() - glm4voice_naive.source(naive, *given)).max() < 1e-4
    expected = glm4voice_naive.sound(naive, mel[0].double().numpy(), source[0].double().numpy())
    assert np.abs(sound[0].numpy() - expected).max() < 1e-5


def test_a_source_changes_the_sound_and_follows_its_pitch(decoder):
    """A steady F0 of 441 Hz gives a source that repeats every 50 samples."""
    source, still = decoder.vocoder.m_source.cpu(), torch.zeros(1, 9, 2000)
    with torch.inference_mode():
        waves = source.harmonics(torch.full((1, 2000), 441.0), torch.zeros(1, 9, 1), still)
    assert torch.allclose(waves[..., 50:], waves[..., :-50], atol=1e-4) and waves.abs().max() > 0.09
    assert not source.harmonics(torch.full((1, 9), 9.9), torch.zeros(1, 9, 1), still[..., :9]).any()


# noise, lengths, ids


def test_decoding_leaves_everybody_else_s_random_numbers_alone(codec):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = codec.decode(units_of(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert np.array_equal(codec.decode(units_of(5)), first)


@pytest.mark.parametrize(("count", "frames"), [(1, 6), (2, 13), (25, 172), (64, 441)])
def test_so_many_units_make_so_many_samples(codec, count, frames):
    assert codec.decoder.flow.frames(count) == frames
    assert codec.decode(units_of(count)).shape == (256 * frames,)


def test_no_units_are_no_sound_and_foreign_ids_are_broken(codec):
    assert codec.decode([]).shape == (0,)
    for units in ([0, UNITS], [-1]):
        with pytest.raises(BrokenUnits, match="expected 0 … 47"):
            codec.decode(units)


def test_an_utterance_goes_round(codec):
    assert codec.sample_rate == 22050 and codec.n_units == UNITS and codec.steps == 3
    units = codec.encode(speech(1), 16000)
    sound = codec.decode(units)
    assert len(units) == 13 and np.abs(sound).max() <= 0.99 and abs(len(sound) / 22050 - 1.04) < 0.02
    assert not np.array_equal(codec.decode(units[::-1]), sound)


# the published sizes


def test_the_published_sizes_have_the_published_counts():
    """111,166,208 numbers in 1185 tensors, 20,460,591 in 227: weight norm adds one length for each first channel."""
    said = yaml.load(glm4voice.CONFIG_YAML, Loader=_loader())
    flow, hift = said["flow"], said["hift"]
    flow |= {"input_size": 512, "output_size": 80, "vocab_size": 16384, "spk_embed_dim": 192}
    flow["encoder"] |= {"input_size": 512, "output_size": 512, "attention_heads": 8, "linear_units": 2048}
    flow["encoder"]["num_blocks"], flow["length_regulator"]["channels"] = 6, 80
    flow["decoder"]["estimator"] |= {"in_channels": 320, "out_channels": 80, "channels": [256, 256], "n_blocks": 4}
    flow["decoder"]["estimator"] |= {"num_mid_blocks": 12, "num_heads": 8, "attention_head_dim": 64}
    hift |= {"in_channels": 80, "base_channels": 512, "sampling_rate": 22050}
    hift["f0_predictor"] |= {"in_channels": 80, "cond_channels": 512}
    with torch.device("meta"):
        flow, hift = Flow(flow).state_dict(), Hift(hift).state_dict()
    assert (sum(tensor.numel() for tensor in flow.values()), len(flow)) == (111_166_208, 1185)
    normed = [t for name, t in hift.items() if t.ndim == 3 and not name.startswith("source_downs")]
    numbers = sum(tensor.numel() for tensor in [*hift.values()]) + sum(len(tensor) for tensor in normed)
    assert (numbers, len(hift) + len(normed)) == (20_460_591, 227)


def _loader():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, tag, node: _plain(loader, node))
    return Loader


def _plain(loader, node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else node.value


def test_weight_norm_is_folded_as_torch_does_it(folder, decoder):
    """The same file in a vocoder that torch's own weight norm was put on; transposed convolutions by input channel."""
    said = read_tagged_yaml(folder / "glm-4-voice-decoder/config.yaml")
    state = torch.load(folder / "glm-4-voice-decoder/hift.pt", weights_only=True)
    assert state["ups.0.weight_g"].shape == (16, 1, 1)
    normed, plain = Hift(said["hift"]), dict(decoder.vocoder.named_modules())
    parts = {name: part for name, part in normed.named_modules() if f"{name}.weight_v" in state}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in parts.values():
            torch.nn.utils.weight_norm(part)
    normed.load_state_dict(state)
    mel = torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        sounds = [vocoder(mel, torch.Generator().manual_seed(1)) for vocoder in (normed, decoder.vocoder.cpu())]
    assert len(parts) == 5 + 4 + 6 * 8 and torch.allclose(*sounds, atol=1e-5)
    for name, part in parts.items():
        assert torch.allclose(part.weight, plain[name].weight, atol=1e-6)


# files


def test_a_saved_codec_holds_everything_to_the_byte(codec, folder, tmp_path):
    codec.save(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert again.digest == codec.digest and again.steps == 3
    assert np.array_equal(again.decode(units_of(4)), codec.decode(units_of(4)))
    for name in ("config.yaml", "flow.pt", "hift.pt"):
        original = folder / "glm-4-voice-decoder" / name
        assert (tmp_path / "saved/decoder" / name).read_bytes() == original.read_bytes()


def test_steps_are_those_of_the_settings_and_ten_if_they_say_none(copy, codec):
    said = json.loads((copy / "glm4voice_codec.json").read_text())
    del said["steps"]
    (copy / "glm4voice_codec.json").write_text(json.dumps(said))
    ten = load_codec(copy)
    assert np.array_equal(ten.decode(units_of(3)), codec.decoder(units_of(3), steps=10))
    assert not np.array_equal(ten.decode(units_of(3)), codec.decode(units_of(3)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "elocute-unit-codec-1"}, "format: expected 'elocute-glm4voice-codec-1'"),
        ({"tokenizer": None}, "tokenizer: expected a path, got None"),
        ({"steps": 0}, "steps: expected a number, at least 1, got 0"),
        ({"speed": 2}, "speed: unknown key"),
        ({"decoder": "glm-4-voice-tokenizer"}, "not a decoder of GLM-4-Voice: there is no config.yaml"),
        ({"tokenizer": "glm-4-voice-decoder"}, "not a speech tokenizer of GLM-4-Voice: there is no config.json"),
    ],
)
def test_settings_that_say_something_else_are_refused(copy, changes, said):
    file = copy / "glm4voice_codec.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=said):
        load_codec(copy)


def in_yaml(copy: Path, old: str, new: str) -> Path:
    file = copy / "glm-4-voice-decoder" / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return copy


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("block_rel_selfattn", "rel_selfattn", 'selfattention_layer_type: expected "block_rel_selfattn"'),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", 't_scheduler: expected "cosine"'),
        ("act_fn: 'gelu'", "act_fn: 'snakebeta'", 'act_fn: expected "gelu"'),
        ("        block_size: 10\n", "", "flow: lacks block_size"),
        ("    audio_limit: 0.99\n", "", "hift: lacks audio_limit"),
        ("flow: !new", "wave: !new", "flow.encoder: missing"),
        ("inference_cfg_rate: 0.7", "inference_cfg_rate: much", "flow: cannot be built: could not convert"),
        ("upsample_rates: [8, 8]", "upsample_rates: 8", "hift: cannot be built"),
        ("vocab_size: 48", "vocab_size: 40", r"input_embedding.weight: the config says \[40, 16\]"),
        ("num_mid_blocks: 2", "num_mid_blocks: 3", "flow.pt: the weights lack decoder.estimator.mid_blocks.2"),
        ("num_blocks: 2", "num_blocks: 1", "flow.pt: the weights hold encoder.encoders.1"),
        ("<sample_rate>", "<rate>", "!ref <rate>: expected <key> with a value at the top"),
        ("<sample_rate>", "<sample_rate> // 2", "expected <key>"),
        ("sample_rate: 22050", "sample_rate: !!python/object/apply:os.getpid []", "not YAML that holds data only"),
        ("flow: !new", "flow: [", "not YAML that holds data only"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, old, new, said):
    with pytest.raises(InputError, match=said) as error:
        SpeechDecoder.load(in_yaml(copy, old, new) / "glm-4-voice-decoder")
    assert "\n" not in str(error.value)


def test_a_decoder_with_fewer_units_than_the_codebook_is_refused(copy):
    folder = in_yaml(copy, "vocab_size: 48", "vocab_size: 40") / "glm-4-voice-decoder"
    state = torch.load(folder / "flow.pt", weights_only=True)
    state["input_embedding.weight"] = state["input_embedding.weight"][:40].clone()
    torch.save(state, folder / "flow.pt")
    with pytest.raises(InputError, match="the decoder knows 40 units, the tokenizer's codebook has 48"):
        load_codec(copy)


def test_tags_are_data_and_nothing_is_constructed(tmp_path):
    file = tmp_path / "x.yaml"
    trap = tmp_path / "sprung"
    file.write_text(f"a: 3\nb: !new:os.mkdir [{trap}]\nc: !apply:os.mkdir\n  path: {trap}\nd: [!ref <a>, !name:f ]\n")
    said = read_tagged_yaml(file)
    assert said == {"a": 3, "b": [str(trap)], "c": {"path": str(trap)}, "d": [3, ""]} and not trap.exists()


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["flow.pt", "hift.pt"])
def test_weights_that_would_run_something_are_refused(copy, tmp_path, name):
    folder = copy / "glm-4-voice-decoder"
    torch.save({"conv_pre.bias": Trap(tmp_path / "sprung")}, folder / name)
    with pytest.raises(InputError, match=rf"{name}: not weights that torch can load[^\n]*$"):
        SpeechDecoder.load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{"generator": {"conv_pre.bias": torch.zeros(1)}}, [1]])
def test_a_file_of_something_else_is_refused(copy, content):
    folder = copy / "glm-4-voice-decoder"
    torch.save(content, folder / "hift.pt")
    with pytest.raises(InputError, match="hift.pt: expected named tensors and nothing else"):
        SpeechDecoder.load(folder)


def test_half_of_a_weight_norm_is_refused(copy):
    folder = copy / "glm-4-voice-decoder"
    state = torch.load(folder / "hift.pt", weights_only=True)
    del state["ups.1.weight_v"]
    torch.save(state, folder / "hift.pt")
    with pytest.raises(InputError, match="hift.pt: weight norm without its two parts: 'ups.1.weight_v'"):
        SpeechDecoder.load(folder)


def test_old_files_of_torch_load(copy, decoder):
    folder = copy / "glm-4-voice-decoder"
    state = torch.load(folder / "flow.pt", weights_only=True)
    torch.save(state, folder / "flow.pt", _use_new_zipfile_serialization=False)
    assert np.array_equal(SpeechDecoder.load(folder)(units_of(4), 2), decoder(units_of(4), 2))
