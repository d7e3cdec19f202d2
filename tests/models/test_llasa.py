"""Llasa and X-Codec 2 from their published folders, with the elocute.json that the page gives, word for word."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.models.batch import make_batch, pad_tokens
from elocute.models.tts_lm import TtsLM, check_settings, load_vocabulary
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.rollout.speak import speak
from elocute.speech.xcodec2 import XCodec2
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import codecs, llasa

PAGE = Path("docs/native-talkers.md")
TEXT = "The train leaves at nine."
LENGTH = 6


def settings(of: str) -> str:
    """The block of the page, of its section."""
    section = PAGE.read_text().split(f"\n## {of}\n")[1].split("\n## ")[0]
    [block] = re.findall(r"^```json\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models"), 256, (4,) * 4)


def make(home: Path, units: int, levels: tuple[int, ...]) -> Path:
    codecs.xcodec2(home / "xcodec2", levels=levels)
    llasa.checkpoint(home / "Llasa-1B", units)
    (home / "Llasa-1B/elocute.json").write_text(settings("Llasa"))
    return home / "Llasa-1B"


@pytest.fixture(scope="module")
def lm(folder) -> TtsLM:
    check_model(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    for number in range(2):
        waveform, rate = load_audio("starter/audio/heldout-sum-0000.answer.wav")
        save_wav(home / f"{number}.wav", waveform[number * 999 : rate // 5], rate)
    line = {
        "messages": [{"role": "user", "content": TEXT}], "sft_target_audio": "0.wav", "rejected_audio": "1.wav",
    }  # fmt: skip
    other = line | {"messages": [{"role": "user", "content": "One."}]}
    (home / "rows.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    return home / "rows.jsonl"


def test_the_prompt_is_the_chat_templates(lm, rows):
    """As Llasa is used: the answer goes on from where the template leaves the assistant's begun message."""
    chat = [
        {
            "role": "user",
            "content": f"Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{TEXT}<|TEXT_UNDERSTANDING_END|>",
        },
        {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"},
    ]
    expected = lm.tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    prompt = lm.encode_prompt(read_rows(rows)[0])
    begun = [*prompt.tolist(), lm.layout.speech_begin]
    assert begun == lm.tokenizer.encode(expected, add_special_tokens=False)


def test_the_published_vocabulary_fits_the_published_codec(tmp_path):
    """All 65,536 units; a text may still hold none of their tokens."""
    template, layout, codec, _ = load_vocabulary(make(tmp_path, llasa.UNITS, (4,) * 8))
    assert isinstance(codec, XCodec2) and codec.n_units == layout.n_units == llasa.UNITS
    vocabulary = template.tokenizer.get_vocab()
    assert all(vocabulary[f"<|s_{unit}|>"] == layout.first_unit + unit for unit in (0, 1, 40000, 65535))
    with pytest.raises(InputError, match=re.escape("the control token '<|s_65535|>'")):
        template.encode("ha <|s_65535|>", {})


def test_a_recording_is_a_target(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens = lm.encode_target(row, audio)
    units = lm.layout.read(tokens.ids).units
    assert units == audio.units(row.target_audio).tolist() and len(units) == 11
    assert tokens.action.tolist() == [False] + [True] * 12 and not tokens.text.any()
    spoken = lm.decode(tokens.ids)
    assert len(spoken.waveform) == 320 * 11 and spoken.sample_rate == 16000 and not spoken.broken


def test_score_is_sample(lm, rows):
    prompts = [lm.encode_prompt(row) for row in read_rows(rows)]
    rollouts = [r for group in sample_groups(lm, prompts, [[1, 2], [3, 4]], Sampling(LENGTH, 0.9)) for r in group]
    tokens = pad_tokens([rollout.tokens for rollout in rollouts])
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], tokens.action, "cpu")
    with torch.no_grad():
        logp = Policy(lm)(batch, 0.9)[0]
    sampled = torch.cat([rollout.logprob[rollout.tokens.action] for rollout in rollouts])
    assert (logp - sampled).abs().max() < 1e-5


def test_it_speaks(lm):
    """With random weights, to the longest length allowed."""
    [spoken] = speak(lm, [(TEXT, {})], seed=1, max_new_tokens=4)
    assert spoken.utterance.broken and len(spoken.units) <= 3


OBJECTIVES = {
    "hybrid": "{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: speech}, sft: {scope: speech}, "
    "kl: {text: 0, speech: 0.1}}",
    "dpo": "{kind: dpo, mode: offline, scope: speech}",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_trains_and_is_saved(folder, rows, tmp_path, objective):
    judge = "{kind: function, function: 'tests/models/test_llasa.py:length', low: 0, high: 100}"
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
            f"objective={OBJECTIVES[objective]}", f"rewards=[{'' if objective == 'dpo' else judge}]", "lora={rank: 4}",
            "rollout.group_size=2", "rollout.prompts_per_step=2", f"rollout.max_new_tokens={LENGTH}",
            "optim.warmup_steps=0", "optim.lr=0.01", "reward_mix.invalid_penalty=0",
        ],
    )  # fmt: skip
    trainer = Trainer(recipe)
    assert trainer.train()
    trainer.save_model()
    trainer.close()
    saved = tmp_path / "run/model"
    before, after = (load_file(place / "model.safetensors") for place in (folder, saved))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after) and changed and all("layers" in name for name in changed)
    again = load_model(saved)
    assert again.codec.digest == XCodec2.load(folder.parent / "xcodec2").digest
    assert again.encode_prompt(read_rows(rows)[0]).equal(load_model(folder).encode_prompt(read_rows(rows)[0]))


def length(completions: list) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def test_codecs_that_do_not_fit(folder, tmp_path):
    """Another codebook's size, several codebooks, the original's own layout."""
    said = json.loads(settings("Llasa"))
    for name, make, complaint in (
        ("large", lambda place: codecs.xcodec2(place, levels=(4,) * 8), "embeddings, its codec needs ids up to"),
        ("dac", codecs.dac, "codec: expected one of one codebook, a token for each unit; it has 3"),
        ("original", original, "the weights hold generator.weight|the weights lack"),
    ):
        make(tmp_path / name)
        (folder / "elocute.json").write_text(json.dumps(said | {"codec": str(tmp_path / name)}))
        try:
            with pytest.raises(InputError, match=complaint) as error:
                load_model(folder)
        finally:
            (folder / "elocute.json").write_text(settings("Llasa"))
        assert "\n" not in str(error.value)


def original(folder: Path) -> None:
    """`HKUSTAudio/xcodec2` says model_type xcodec2, too; its names are others."""
    codecs.xcodec2(folder)
    state = {
        name.replace("acoustic_decoder", "generator"): t for name, t in load_file(folder / "model.safetensors").items()
    }

    save_file(state, folder / "model.safetensors")


def test_texts_with_control_tokens_are_refused(lm):
    for token in ("<|s_17|>", "<|SPEECH_GENERATION_END|>", "<|eot_id|>"):
        with pytest.raises(InputError, match=re.escape(f"the control token {token!r}")):
            lm.template.encode(f"ha {token}", {})
    assert len(lm.template.encode("s_17 is 65535 <| s_1 |>", {}))


def test_what_the_page_says_of_orpheus_is_understood():
    said = json.loads(settings("Orpheus"))
    check_settings(Path("elocute.json"), said)
    filled = said["prompt"].replace("{text}", TEXT)
    assert filled == f"<custom_token_3><|begin_of_text|>tara: {TEXT}<|eot_id|><custom_token_4><custom_token_5>"
