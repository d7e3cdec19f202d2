"""Kimi-Audio through the public path: its published folder is asked, sampled from, scored, trained, saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperModel

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch, pad_tokens
from elocute.models.kimi import lay_out_target, load_network
from elocute.training.policy import Policy
from tests.contracts import glm4voice, kimi, kimi_sound
from tests.models.adapter_checks import AdapterChecks

TURNS = [
    [("user", "<|audio|>")],
    [("user", "hello")],
    [("user", "<|audio|>the"), ("assistant", "hello<|audio|>"), ("user", "speak<|audio|>")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    glm4voice.tokenizer(home / "glm-4-voice-tokenizer")
    folder = kimi_sound.build(kimi.build(home / "Kimi-Audio-7B-Instruct"))
    (folder / "LICENSE").write_text("MIT")
    return folder


class TestAdapter(AdapterChecks):
    def odd(self, lm):
        word = [*lm.tokenizer.encode("th"), *lm.tokenizer.encode("e")]
        assert word != lm.tokenizer.encode("the")
        return [lay_out_target(word, range(9), lm.layout.marks).flat().ids.tolist()]

    test_control_tokens_are_refused = None  # its tokenizer reads them as plain text

    def tensors(self, folder):
        return {name: tensor for name, tensor in kimi.tensors(folder).items() if "inv_freq" not in name}

    def check_run(self, folder, adapters):
        assert any("mimo_layers" in name for name in adapters)
        assert (folder / "whisper-large-v3/model.safetensors").is_file() and load_network(folder)
        assert (folder / "LICENSE").read_text() == "MIT"
        moved = shutil.move(folder, folder.parent.parent / "moved")  # it is whole wherever it is moved
        assert load_model(moved).codec.digest and not [path for path in moved.rglob("*") if path.is_symlink()]
        assert "/" not in (moved / "elocute.json").read_text()
        shutil.move(moved, folder)


def test_sound_comes_and_goes_at_24_khz(lm):
    assert (lm.codec.sample_rate, lm.codec.n_units) == (24000, kimi.N_CODES)


def test_what_is_heard_stands_in_both_forms(lm, rows, prompts):
    first = prompts[0]
    assert first.ids.shape == (len(first), 2) and int(first.continuous.sum()) == len(first.features) == 7
    assert torch.equal(first.features, lm.whisper.encode(*load_audio(read_rows(rows)[0].audios[0].path))[:7])
    assert not prompts[1].continuous.any() and len(prompts[1].features) == 0
    # What the assistant itself said earlier is no heard speech.
    assert int(prompts[2].continuous.sum()) == len(prompts[2].features) == 14


def test_blanks_are_no_actions(lm, groups):
    marks = lm.layout.marks
    for rollout in (rollout for group in groups for rollout in group):
        cells = rollout.tokens.ids.view(-1, 2)
        action = rollout.tokens.action.view(-1, 2)
        assert (cells[: marks.delay, 0] == marks.blank).all() and not action[: marks.delay, 0].any()
        assert action[marks.delay :, 0].all()
        assert torch.equal(rollout.tokens.text.view(-1, 2), torch.tensor([[False, True]]).expand(len(cells), 2))
        assert (rollout.logprob.view(-1, 2)[~action] == 0).all() and (rollout.logprob.view(-1, 2)[action] < 0).all()
        ended = (cells[:, 1] == marks.text_eos).nonzero()
        if len(ended):
            assert not action[int(ended[0]) + 1 :, 1].any()


def test_a_scope_moves_its_own_head_only(lm, groups):
    rollouts = [rollout for group in groups for rollout in group]
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])
    for scope, moved, still in ((tokens.text, "lm_head", "mimo_output"), (~tokens.text, "mimo_output", "lm_head")):
        batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], tokens.action & scope, "cpu")
        lm.model.zero_grad()
        Policy(lm)(batch)[0].sum().backward()
        assert getattr(lm.model, moved).weight.grad.abs().max() > 0
        gradient = getattr(lm.model, still).weight.grad
        assert gradient is None or gradient.abs().max() == 0
    lm.model.zero_grad()


def test_a_code_is_1920_samples(lm, rows):
    row = read_rows(rows)[0]
    audio = EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    reply = lm.layout.read(tokens.ids)
    assert lm.tokenizer.decode(reply.text_ids) == "hel"
    assert len(lm.decode(tokens.ids).waveform) == 1920 * len(reply.units)


def test_what_is_missing_is_one_line(folder, tmp_path):
    alone = tmp_path / "Kimi-Audio-7B-Instruct"
    shutil.copytree(folder, alone)
    with pytest.raises(InputError, match="glm-4-voice-tokenizer: expected glm-4-voice-tokenizer there"):
        check_model(alone)
    (alone / "elocute.json").write_text(json.dumps({"kind": "kimi_audio", "speech_tokenizer": str(tmp_path / "no")}))
    with pytest.raises(InputError, match="no: expected glm-4-voice-tokenizer there"):
        load_model(alone)
    said = {"kind": "kimi_audio", "speech_tokenizer": str(folder.parent / "glm-4-voice-tokenizer"), "delay": 6}
    (alone / "elocute.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="elocute.json: delay: unknown key"):
        check_model(alone)


def test_a_missing_shard_is_named_before_anything_is_loaded(folder, tmp_path):
    copy = tmp_path / "Kimi-Audio-7B-Instruct"
    shutil.copytree(folder, copy)
    shutil.copytree(folder.parent / "glm-4-voice-tokenizer", tmp_path / "glm-4-voice-tokenizer")
    shutil.rmtree(copy / "audio_detokenizer")  # not come to
    shard = sorted(copy.glob("model-*.safetensors"))[0]
    shard.unlink()
    for load in (check_model, load_model):
        with pytest.raises(InputError, match=f"{shard.name}: missing"):
            load(copy)


def rewrite(file: Path, key: str, change) -> None:
    held = torch.load(file, weights_only=True)
    change(held[key])
    torch.save(held, file)


def fewer(state: dict) -> None:
    state["speech_model.semantic_token_embedding.weight"] = torch.zeros(kimi.N_CODES, kimi_sound.HIDDEN)


@pytest.mark.parametrize(
    ("place", "spoil", "said"),
    [
        ("whisper-large-v3/model.safetensors", Path.unlink, "not a Whisper's safetensors file"),
        ("whisper-large-v3/config.json", lambda file: edit(file, encoder_layers=9), "the weights lack layers.2"),
        ("audio_detokenizer/config.yaml", Path.unlink, "config.yaml: not the config of a flow"),
        ("audio_detokenizer/model.pt", lambda file: rewrite(file, "state_dict", fewer), "the voice knows 47 codes"),
        ("vocoder/model.pt", lambda file: rewrite(file, "generator", lambda state: state.pop("conv_pre.bias")),
         "the weights lack conv_pre.bias"),
    ],
)  # fmt: skip
def test_what_hears_and_speaks_is_checked_before_anything_is_loaded(folder, tmp_path, place, spoil, said):
    """`--dry-run` finds it."""
    shutil.copytree(folder, tmp_path / "Kimi-Audio")
    shutil.copytree(folder.parent / "glm-4-voice-tokenizer", tmp_path / "glm-4-voice-tokenizer")
    spoil(tmp_path / "Kimi-Audio" / place)
    with pytest.raises(InputError, match=said) as caught:
        check_model(tmp_path / "Kimi-Audio")
    assert "\n" not in str(caught.value)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_features_of_another_width_are_named(folder, tmp_path):
    """Whisper's own folder is whole: it is not the one that the model was trained behind."""
    shutil.copytree(folder, tmp_path / "Kimi-Audio")
    shutil.copytree(folder.parent / "glm-4-voice-tokenizer", tmp_path / "glm-4-voice-tokenizer")
    place = tmp_path / "Kimi-Audio/whisper-large-v3"
    config = WhisperConfig(**json.loads((place / "config.json").read_text()) | {"d_model": 16})
    WhisperModel(config).save_pretrained(place)
    with pytest.raises(InputError, match="whisper-large-v3 gives features of 64, kimia_adaptor_input_dim is"):
        check_model(tmp_path / "Kimi-Audio")


def test_an_adapter_is_no_model(folder, tmp_path):
    for base in (None, folder):
        if base:
            shutil.copytree(folder, tmp_path / "whole")
        place = tmp_path / ("whole" if base else "adapter")
        place.mkdir(exist_ok=True)
        (place / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "other/model"}')
        with pytest.raises(InputError, match="expected a whole model, this is an adapter trained for other/model"):
            check_model(place)


def test_a_tokenizer_of_other_codes_is_named_before_anything_is_loaded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "Kimi-Audio")
    shutil.copytree(folder.parent / "glm-4-voice-tokenizer", tmp_path / "glm-4-voice-tokenizer")
    file = tmp_path / "glm-4-voice-tokenizer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantize_vocab_size": 7}))
    with pytest.raises(InputError, match=f"tokenizer has 7 units, the model's vocabulary {kimi.N_CODES}"):
        check_model(tmp_path / "Kimi-Audio")
