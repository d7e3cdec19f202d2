"""How VITA-Audio Plus hears: SenseVoice and the projector by their equations, and alone from a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.errors import InputError
from elocute.models.vita import UserAudio, load_network, load_tokens, n_embeddings, write_audio
from elocute.speech.sensevoice import SenseVoice, Sinusoids
from tests.contracts import vita_audio
from tests.contracts.vita_naive import naive_encoder, naive_projector, read_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus", n_units=40)


@pytest.fixture(scope="module")
def hearing(folder) -> UserAudio:
    return UserAudio.load(folder)


@pytest.fixture(scope="module")
def projector(folder):
    return load_network(folder).model.audio_projection


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def features(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 560, generator=generator) for count in counts]


def noise(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)


def test_states_and_embeddings_are_their_equations(folder, hearing, projector):
    weights, given = read_weights(folder), features(9)
    states = naive_encoder(weights, given[0])
    torch.testing.assert_close(hearing.states(given)[0].double(), states, atol=2e-5, rtol=1e-5)
    expected = naive_projector(weights, states)
    torch.testing.assert_close(projector(hearing.states(given)[0]).double(), expected, atol=2e-5, rtol=1e-5)


def test_the_heads_are_those_of_funasrs_config(copied):
    (copied / "config.yaml").write_text("encoder_conf:\n  attention_heads: 2\n")
    given = features(7)
    expected = naive_encoder(read_weights(copied), given[0], heads=2)
    torch.testing.assert_close(UserAudio.load(copied).states(given)[0].double(), expected, atol=2e-5, rtol=1e-5)


def test_features_are_rounded_to_bfloat16_whatever_the_weights(hearing):
    given = features(6)
    rounded = [each.to(torch.bfloat16).float() for each in given]
    assert not torch.equal(given[0], rounded[0])
    assert torch.equal(hearing.states(given)[0], hearing.states(rounded)[0])


def test_recordings_of_a_batch_are_as_alone(hearing):
    given = features(12, 1, 7)
    for together, one in zip(hearing.states(given), given, strict=True):
        assert together.shape == (len(one) + 4, vita_audio.STATE)
        torch.testing.assert_close(together, hearing.states([one])[0], atol=1e-5, rtol=1e-5)


def test_what_a_row_is_padded_with_does_not_matter(hearing):
    padded = torch.full((1, 9, 560), 3.0)
    padded[0, :5] = features(5)[0]
    found = hearing.encoder(padded, torch.tensor([5]))[0, :9]
    torch.testing.assert_close(found, hearing.states(features(5))[0], atol=1e-5, rtol=1e-5)


def test_positions_in_bfloat16_lose_their_unit():
    """Training heard it so: mean error of row 10 of the sinusoids 0.002, of row 257 0.05, of row 599 0.11."""
    exact = Sinusoids()(torch.zeros(1, 600, 560, dtype=torch.float64))[0]
    rounded = Sinusoids()(torch.zeros(1, 600, 560, dtype=torch.bfloat16))[0]
    assert rounded.dtype == torch.bfloat16
    errors = (rounded.double() - exact).abs().mean(1)
    found = [round(errors[row].item(), digits) for row, digits in ((10, 3), (257, 2), (599, 2))]
    assert found == [0.002, 0.05, 0.11]
    plain = Sinusoids()(torch.zeros(1, 600, 560))[0]
    assert (plain.double() - exact).abs().max() < 1e-3


def test_in_bfloat16_it_hears_nearly_the_same(folder, hearing):
    half = UserAudio.load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.encoder.parameters()} == {torch.bfloat16}
    for found, expected in zip(half.states(features(9, 4)), hearing.states(features(9, 4)), strict=True):
        assert (found.float() - expected).abs().mean() < 0.05


def test_it_is_never_in_training_mode(hearing):
    """Dropout of a frozen encoder makes the original's log-probs random."""
    hearing.encoder.train()
    assert not any(part.training for part in hearing.encoder.modules())
    assert not any(parameter.requires_grad for parameter in hearing.encoder.parameters())
    assert torch.equal(hearing.states(features(5))[0], hearing.states(features(5))[0])


@pytest.mark.parametrize(("seconds", "places"), [(1, 21), (5, 87), (30, 504)])
def test_places_in_the_prompt(hearing, seconds, places):
    assert n_embeddings(seconds * 16000) == places
    if seconds < 30:
        assert len(hearing.states([hearing.features(noise(seconds * 16000), 16000)])[0]) == places


def test_a_waveform_is_heard_into_the_prompt(folder, hearing):
    """From sound to logits: the context places are overwritten, the markers around them are not."""
    tokens, network = load_tokens(folder), load_network(folder)
    heard = network.model.audio_projection(hearing.states([hearing.features(noise(24000), 24000)])[0])
    assert len(heard) == n_embeddings(16000)
    ids = tokens.encode_chat([{"role": "user", "content": "<|audio|>"}], [len(heard)])[None]
    where = ids == tokens.context
    embeds = write_audio(network.model.embed_tokens(ids), where, heard)
    assert int(where.sum()) == 21 and ids[0, where[0].nonzero()[0, 0] - 1] == tokens.begin
    assert not torch.allclose(network(inputs_embeds=embeds).logits[0, -1], network(ids).logits[0, -1], atol=1e-3)


# what is refused


def test_boost_has_no_ears(tmp_path):
    with pytest.raises(InputError, match="qwen2_mtp hears units"):
        UserAudio.load(vita_audio.boost(tmp_path / "boost", n_units=40))


def rewrite(folder: Path, change) -> None:
    """Apply `change` to all weights and write them as one file."""
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


ENCODER = "model.audio_model.model.encoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(f"{ENCODER}.tp_norm.bias"), "weights lack encoder.tp_norm.bias"),
        (lambda state: state.pop("model.audio_model.model.embed.weight"), "weights lack embed.weight"),
        (lambda state: state.update({f"{ENCODER}.more": torch.zeros(1)}), "hold encoder.more"),
        (lambda state: state.update({"model.audio_model.more": torch.zeros(1)}), "hold model.audio_model.more"),
        (
            lambda state: state.update({f"{ENCODER}.encoders.0.norm1.weight": torch.zeros(8)}),
            r"encoder.encoders.0.norm1.weight: expected shape \[16\], got \[8\]",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if ".tp_encoders." in name],
            "no SenseVoice encoder: 4 heads of states of 16, 2 [+] 0 layers",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(copied, change, message):
    rewrite(copied, change)
    with pytest.raises(InputError, match=message) as caught:
        UserAudio.load(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.audio_projection.mlp.2.weight"), "lack model.audio_projection.mlp.2.weight"),
        (
            lambda state: state.pop("model.audio_projection.pre_proj_layernorm.weight"),
            "projection.pre_proj_layernorm",
        ),
        (
            lambda state: state.update({"model.audio_projection.mlp.0.weight": torch.zeros(8, 16)}),
            r"projection.mlp.0.weight: expected the shape \[32, 16\]",
        ),
    ],
)
def test_a_projector_that_does_not_fit_is_refused(copied, change, message):
    rewrite(copied, change)
    with pytest.raises(InputError, match=message):
        load_network(copied)


def test_statistics_must_be_there(copied):
    (copied / "am.mvn").unlink()
    with pytest.raises(InputError, match="am.mvn: not the statistics"):
        UserAudio.load(copied)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"encoder_conf": {"attention_heads": 3}}, "3 heads of states of 16"),
        ({"encoder_conf": {"attention_heads": "four"}}, "attention_heads: expected a positive number"),
        ({"frontend_conf": {"lfr_m": 5}}, "frontend_conf: lfr_m: expected 7, got 5"),
        ({"frontend_conf": {"window": "povey"}}, "window: expected 'hamming', got 'povey'"),
    ],
)
def test_another_geometry_is_refused(copied, said, message):
    (copied / "config.yaml").write_text(json.dumps(said))
    with pytest.raises(InputError, match=message):
        UserAudio.load(copied)


def test_without_funasrs_config_it_is_sensevoice_small(copied, hearing):
    (copied / "config.yaml").unlink()
    assert torch.equal(UserAudio.load(copied).states(features(5))[0], hearing.states(features(5))[0])


def test_one_block_is_an_encoder_too(folder):
    """Layer 0 alone carries the norm that ends the blocks."""
    weights = read_weights(folder)
    published = {
        name.removeprefix("model.audio_model.model."): tensor.float()
        for name, tensor in weights.items()
        if name.startswith("model.audio_model.") and ".encoders.0." not in name and ".ctc." not in name
    }
    encoder = SenseVoice.from_published(published)
    kept = {name: tensor for name, tensor in weights.items() if ".encoders.0." not in name}
    found = encoder(features(6)[0][None], torch.tensor([6]))[0]
    torch.testing.assert_close(found.double(), naive_encoder(kept, features(6)[0]), atol=2e-5, rtol=1e-5)
