"""Every part of a published folder loads alone: the lines that docs/models.md gives, and what they load."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from elocute.errors import InputError
from elocute.models import unit_lm, vita
from tests.contracts import glm4voice, kimi, kimi_sound, minicpm_o, slamkit, twist, unit_sound, vita_audio


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    vita_audio.plus(home / "VITA-Audio-Plus-Boost", n_units=40)
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    glm4voice.decoder(home / "glm-4-voice-decoder")
    kimi_sound.build(kimi.build(home / "Kimi-Audio-7B-Instruct"))
    minicpm_o.checkpoint(home / "MiniCPM-o-2_6")
    twist.llama(home / "TWIST-1.3B")
    slamkit.slam(home / "slam")
    unit_sound.build(home / "unit-codec")
    return home


def test_the_lines_of_the_page(home, monkeypatch):
    [block] = re.findall(r"## Parts, each alone.*?```python\n(.*?)```", Path("docs/models.md").read_text(), re.DOTALL)
    monkeypatch.chdir(home)
    exec(compile(block, "docs/models.md", "exec"), {})


def test_depths_and_projector_alone_are_those_of_the_whole(home):
    """Neither the main layers nor the audio encoder are read for them: they may be noise."""
    folder = home / "VITA-Audio-Plus-Boost"
    whole, depths, projector = vita.load_network(folder), vita.load_mtp(folder), vita.load_projector(folder)
    assert len(depths.model.layers) == depths.n_mtp == 2 and len(whole.model.layers) == 4
    ids, generator = torch.arange(20, 28)[None], torch.Generator().manual_seed(0)
    state = torch.randn(1, 3, whole.config.hidden_size, generator=generator)
    with torch.no_grad():
        for depth in (1, 2):
            given = (
                depth,
                state,
                whole.model.embed_tokens(ids[:, depth : depth + 3]),
                torch.arange(depth, depth + 3)[None],
            )
            assert torch.equal(depths.mtp(*given), whole.mtp(*given))
            assert torch.equal(depths.lm_head(state), whole.lm_head(state))
        heard = torch.randn(5, whole.config.audio_state_size, generator=generator)
        assert torch.equal(projector(heard), whole.model.audio_projection(heard))
    assert {parameter.dtype for parameter in vita.load_mtp(folder, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_parts_that_a_folder_has_not_are_one_line(home, tmp_path):
    vita_audio.boost(tmp_path / "boost", n_units=40)
    vita_audio.plus(tmp_path / "vanilla", n_mtp=0, n_units=40)
    with pytest.raises(InputError, match="vanilla: num_nextn_predict_layers: expected 1 or more"):
        vita.load_mtp(tmp_path / "vanilla")
    with pytest.raises(InputError, match="boost: qwen2_mtp hears units"):
        vita.load_projector(tmp_path / "boost")


@pytest.mark.parametrize("name", ["TWIST-1.3B", "slam"])
def test_a_unit_lm_needs_no_codec_alone(home, tmp_path, name):
    shutil.copytree(home / name, tmp_path / name)
    alone, whole = unit_lm.load_lm(tmp_path / name), unit_lm.UnitLM.load(home / name)
    ids = torch.arange(6)[None] + 4
    with torch.no_grad():
        assert torch.equal(alone(ids).logits, whole.model(ids).logits)
    with pytest.raises(InputError, match="expected unit-codec there"):
        unit_lm.UnitLM.load(tmp_path / name)
