"""VITA-Audio through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import check_model
from elocute.rollout import Sampling, sample_groups
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


def test_padding_of_the_vocabulary_breaks_an_answer(lm):
    answer = lm.layout.read([5, lm.tokens.size, 6])
    assert answer.broken == "token 1 is padding of the vocabulary" and answer.text_ids == [5]


def test_what_is_missing_is_one_line(folder, tmp_path):
    alone = tmp_path / "VITA-Audio"
    shutil.copytree(folder, alone)
    with pytest.raises(InputError, match="glm-4-voice-tokenizer: expected glm-4-voice-tokenizer there"):
        check_model(alone)


def test_a_tokenizer_of_other_units_is_named_before_anything_is_loaded(folder, tmp_path):
    for place in folder.parent.iterdir():
        shutil.copytree(place, tmp_path / place.name)
    file = tmp_path / "glm-4-voice-tokenizer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantize_vocab_size": 7}))
    with pytest.raises(InputError, match=f"tokenizer has 7 units, the model's vocabulary {UNITS}"):
        check_model(tmp_path / "VITA-Audio")
