"""VITA-Audio through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch, pad_tokens
from elocute.models.vita_lm import load_vocabulary
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from tests.contracts import glm4voice, vita_audio
from tests.models.adapter_checks import LENGTH, AdapterChecks

UNITS = 48
MAKERS = {
    "plus-vanilla": lambda place: vita_audio.plus(place, n_mtp=0, n_units=UNITS),
    "boost": lambda place: vita_audio.boost(place, n_units=UNITS),
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    glm4voice.decoder(home / "glm-4-voice-decoder")
    return MAKERS[request.param](home / "VITA-Audio")


class TestAdapter(AdapterChecks):
    still = ("model.audio_", "mtp_")
    least = 0.3  # multi-token prediction is left out

    def odd(self, lm):
        """Without the newline that stands between an answer's text and its speech."""
        return [lm.tokens.lay_out("hel", range(20), lm.ratio, where="made")]

    def check_run(self, folder, adapters):
        """The folder is whole wherever it is moved."""
        moved = shutil.move(folder, folder.parent.parent / "moved")
        assert load_model(moved).codec.digest and not [path for path in moved.rglob("*") if path.is_symlink()]
        assert "/" not in (moved / "elocute.json").read_text()
        shutil.move(moved, folder)


def test_sound_comes_at_22_khz(lm):
    assert (lm.codec.sample_rate, lm.codec.n_units) == (22050, UNITS)


def test_what_is_heard_stands_at_its_places(lm, prompts):
    for prompt, heard in zip(prompts, (1, 0, 2), strict=True):
        text = lm.tokenizer.decode(prompt.ids)
        assert text.count("<|begin_of_audio|>") == heard and text.endswith("<|im_start|>assistant\n")
        if lm.ears is not None and heard:
            assert int((prompt.ids == lm.tokens.context).sum()) == len(prompt.states)
        else:
            assert prompt.states is None


def test_what_was_heard_matters(lm, prompts):
    if lm.ears is None:
        pytest.skip("Boost hears units, which stand in the ids")
    prompt = prompts[0]
    other = type(prompt)(prompt.ids, prompt.states.flip(0) + 0.5)
    answers = [sample_groups(lm, [of], [[3]], Sampling(LENGTH, 0.9))[0][0] for of in (prompt, other)]
    assert not torch.allclose(answers[0].logprob[:1], answers[1].logprob[:1], atol=1e-3)


def test_a_newline_stands_between_text_and_speech(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    assert lm.tokenizer.decode(lm.layout.read(tokens.ids).text_ids) == "hel\n"
    assert tokens.action.all() and torch.equal(tokens.text, tokens.ids < lm.tokens.begin)


def test_padding_of_the_vocabulary_is_never_drawn(folder, tmp_path, prompts):
    """Its rows are so large here that one of them, or the state's opposite, would be drawn every time."""
    shutil.copytree(folder.parent, tmp_path / "models")
    folder = tmp_path / "models/VITA-Audio"
    source, size = Shards.open(folder), load_vocabulary(folder).size
    loud = source.read("lm_head.weight")[""]
    assert size < len(loud)
    loud[size:] = 1000
    source.save(folder, {"lm_head.weight": loud})
    rollouts = sample_groups(load_model(folder), prompts[1:2], [[*range(8)]], Sampling(LENGTH))[0]
    assert max(rollout.tokens.ids.max() for rollout in rollouts) < size
    assert all(rollout.logprob.min() > -50 for rollout in rollouts)


def test_what_is_missing_is_one_line(folder, tmp_path):
    alone = tmp_path / "VITA-Audio"
    shutil.copytree(folder, alone)
    with pytest.raises(InputError, match="glm-4-voice-tokenizer: expected glm-4-voice-tokenizer there"):
        check_model(alone)


def cut(file: Path) -> None:
    state = load_file(file)
    state.pop("layers.1.fc1.bias")
    save_file(state, file)


@pytest.mark.parametrize(
    ("place", "spoil", "said"),
    [
        ("VITA-Audio/am.mvn", Path.unlink, "am.mvn: not the statistics of audio features"),
        ("VITA-Audio/config.yaml", lambda file: file.write_text("frontend_conf: {fs: 8000}"), "fs: expected 16000"),
        ("glm-4-voice-tokenizer/model.safetensors", cut, "model.safetensors: the weights lack layers.1.fc1.bias"),
        ("glm-4-voice-decoder/hift.pt", Path.unlink, "there is no hift.pt"),
        ("glm-4-voice-decoder/flow.pt", lambda file: file.write_bytes(b"cut"), "flow.pt: not weights"),
    ],
)
def test_what_hears_and_speaks_is_checked_before_anything_is_loaded(folder, tmp_path, place, spoil, said):
    """`--dry-run` finds it."""
    for each in folder.parent.iterdir():
        shutil.copytree(each, tmp_path / each.name)
    if place.startswith("VITA") and not (folder / "am.mvn").exists():
        pytest.skip("it hears units")
    spoil(tmp_path / place)
    with pytest.raises(InputError, match=said) as caught:
        check_model(tmp_path / "VITA-Audio")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_other_units_is_named_before_anything_is_loaded(folder, tmp_path):
    for place in folder.parent.iterdir():
        shutil.copytree(place, tmp_path / place.name)
    file = tmp_path / "glm-4-voice-tokenizer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantize_vocab_size": 7}))
    with pytest.raises(InputError, match=f"tokenizer has 7 units, the model's vocabulary {UNITS}"):
        check_model(tmp_path / "VITA-Audio")


def test_a_decoder_of_fewer_units_is_named_before_anything_is_loaded(folder, tmp_path):
    for place in folder.parent.iterdir():
        shutil.copytree(place, tmp_path / place.name)
    file = tmp_path / "glm-4-voice-decoder/config.yaml"
    said = file.read_text()
    file.write_text(said.replace(f"vocab_size: {UNITS}", f"vocab_size: {UNITS - 1}"))
    assert file.read_text() != said
    with pytest.raises(InputError, match=f"decoder knows {UNITS - 1} units, the model's vocabulary has {UNITS}"):
        check_model(tmp_path / "VITA-Audio")


def test_the_projector_is_trained_with_the_llm_and_its_ears_are_not(lm, prompts, groups):
    """It has a gradient, of 0, of what holds no sound as well: processes add up those of every weight."""
    if lm.ears is None:
        pytest.skip("Boost hears units")
    projector = lm.model.model.audio_projection
    for prompt, group in list(zip(prompts, groups, strict=True))[:2]:
        lm.model.zero_grad()
        tokens = pad_tokens([group[0].tokens])
        Policy(lm)(make_batch([prompt], [group[0].tokens], tokens.action, "cpu"))[0].sum().backward()
        assert all(weight.grad is not None for weight in projector.parameters())
        assert (projector.mlp[0].weight.grad.abs().max() > 0) == (prompt.states is not None)
    lm.model.zero_grad()
    assert all(weight.requires_grad for weight in projector.parameters())
    assert not any(weight.requires_grad for weight in lm.ears.encoder.parameters())
