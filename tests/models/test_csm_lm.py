"""CSM through the public path: its published folder reads aloud, is sampled from, scored, trained, saved."""

import json
from pathlib import Path

import pytest
import torch

from elocute.cli import app
from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models.batch import make_batch
from elocute.models.csm_prompt import NO_TEXT
from elocute.training.policy import Policy
from tests.contracts import csm
from tests.models.adapter_checks import LENGTH, AdapterChecks, recipe_of
from tests.models.conftest import WAVS

GROUP = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return csm.checkpoint(tmp_path_factory.mktemp("models") / "csm-1b", seed=1, ending=2.5)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(WAVS):
        waveform, rate = load_audio(f"starter/audio/{name}")
        save_wav(home / f"{number}.wav", waveform[: rate // 2], rate)
    said = [
        {"messages": [{"role": "user", "content": "The train leaves."}], "labels": {"emotion": "Happy"}},
        {"messages": [{"role": "user", "content": "Nine."}]},
        {
            "messages": [
                {"role": "user", "content": "When?<|audio|>"},
                {"role": "assistant", "content": "At nine.<|audio|>"},
                {"role": "user", "content": "From where?"},
            ],
            "audios": ["0.wav", "2.wav"],
            "speakers": [1, 0, 1],
        },
    ]
    answers = {"sft_target_audio": "1.wav", "rejected_audio": "2.wav"}
    (home / "rows.jsonl").write_text("".join(json.dumps(row | answers) + "\n" for row in said))
    return home / "rows.jsonl"


class TestAdapter(AdapterChecks):
    still = ("codec_model.", "embed_text_tokens.")
    written = ""
    more = ("gradient_checkpointing=true",)
    control = "<|audio_eos|>"

    def odd(self, lm):
        return [[1, 2, 3, 4, 0, 0, 0, 7]]

    def check_run(self, folder, adapters):
        assert any("depth_decoder" in name for name in adapters) and any("backbone" in name for name in adapters)

    def test_a_full_step_moves_all_but_what_is_frozen(self, folder, rows, tmp_path):
        frozen = "freeze=['embed_text_tokens', 'depth_decoder.model.norm']"
        _, moved = self.step(recipe_of(folder, rows, tmp_path / "run", "dpo", frozen))
        assert {"depth_decoder.codebooks_head.weight", "lm_head.weight"} <= moved
        for part in ("backbone_model.layers.", "depth_decoder.model.layers."):
            assert any(name.startswith(part) for name in moved)
        assert not any(name.startswith((*self.still, "depth_decoder.model.norm.")) for name in moved)


def test_some_answers_end_at_different_lengths_and_some_do_not(lm, groups):
    assert (lm.codec.sample_rate, lm.codec.n_units, lm.streams) == (24000, csm.CODES, (csm.CODEBOOKS,))
    lengths = {len(rollout.tokens) for group in groups for rollout in group}
    assert len(lengths) > 2 and max(lengths) == LENGTH * csm.CODEBOOKS


def test_prompts_are_the_templates(lm, rows, prompts):
    audio = EncodedAudio(lm.codec)

    def written(prompt):
        return lm.template.processor.tokenizer.decode(prompt[prompt[:, 0] != NO_TEXT, 0])

    assert written(prompts[1]) == "<|begin_of_text|>[0]Nine.<|end_of_text|>"
    assert written(prompts[0]) == "<|begin_of_text|>[0](emotion: Happy) The train leaves.<|end_of_text|>"
    turns = [
        f"<|begin_of_text|>[{who}]{text}<|end_of_text|>"
        for who, text in ((1, "When?"), (0, "At nine."), (1, "From where?"))
    ]
    assert written(prompts[2]) == "".join(turns)
    heard = [torch.from_numpy(audio.units(ref)) for ref in read_rows(rows)[2].audios]
    end = torch.zeros(1, csm.CODEBOOKS, dtype=torch.int64)
    frames = prompts[2][prompts[2][:, 0] == NO_TEXT, 1:]
    assert torch.equal(frames, torch.cat([heard[0], end, heard[1], end]))


def test_only_frames_with_selected_cells_are_run_in_depth_and_all_at_once(lm, groups):
    rollouts = [rollout for group in groups for rollout in group]
    selected = torch.zeros(len(rollouts), LENGTH, csm.CODEBOOKS, dtype=torch.bool)
    selected[1, 2, 3] = selected[4, 0, 1] = selected[4, 0, 2] = selected[:, 1, 0] = True
    runs = []
    hook = lm.model.depth_decoder.model.register_forward_pre_hook(
        lambda _module, _args, given: runs.append(given["inputs_embeds"].shape[0]), with_kwargs=True
    )
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], selected.flatten(1), "cpu")
    with torch.no_grad():
        logp = Policy(lm)(batch, 0.9)[0]
    hook.remove()
    assert runs == [
        int((selected[..., 1:].any(-1) & (batch.answer_mask.view(-1, LENGTH, csm.CODEBOOKS)[..., 0] > 0)).sum())
    ]
    sampled = torch.stack(
        [rollouts[row].logprob[column] for row, column in zip(batch.rows, batch.columns, strict=True)]
    )
    assert (logp - sampled).abs().max() < 1e-5


def test_any_number_of_frames_is_run_in_depth(lm):
    hidden, cells = torch.randn(8, 32), torch.randint(0, csm.CODES, (8, csm.CODEBOOKS - 1))
    whole = lm.depth(hidden, cells)
    for count in range(1, 8):
        assert torch.allclose(lm.depth(hidden[:count], cells[:count]), whole[:count], atol=1e-5)


def test_every_codebook_of_every_frame_is_a_speech_action_the_end_too(lm, groups):
    ended = [rollout for group in groups for rollout in group if not rollout.broken]
    for rollout in ended:
        frames = rollout.tokens.ids.view(-1, csm.CODEBOOKS)
        assert rollout.tokens.action.all() and not rollout.tokens.text.any() and (rollout.logprob < 0).all()
        assert (frames[-1, :-1] == 0).all() and not (frames[:-1, :-1] == 0).all(-1).any()
        assert len(lm.layout.read(rollout.tokens.ids).units) == len(frames) - 1
    assert ended


def test_a_target_ends_with_the_end_and_is_judged_with_its_text(lm, rows):
    row, audio = read_rows(rows)[0], EncodedAudio(lm.codec)
    tokens, codes = lm.encode_target(row, audio), audio.units(row.target_audio)
    assert tokens.ids.view(-1, csm.CODEBOOKS).tolist() == [*codes.tolist(), [0] * csm.CODEBOOKS]
    answer = lm.answer(row, tokens.ids)
    assert answer.utterance.text == "The train leaves." and len(answer.utterance.waveform) == 1920 * len(codes)


def test_an_answer_that_is_no_speech_is_broken(lm):
    def broken(*frames):
        return lm.decode(torch.tensor(frames).flatten()).broken

    assert broken([1, 2, 3, 4]) == "no end: the answer was cut at the longest length allowed"
    assert broken([0, 0, 0, 0]) == "empty audio"
    assert broken([1, 2, 18, 4], [0, 0, 0, 0]) == "codes: expected 0 … 15, got 1 … 18"
    assert broken([1, 2, 3, 4], [0, 0, 0, 7]) is None  # as transformers has it, whatever the last codebook says


def row_of(tmp_path, **row):
    (tmp_path / "0.wav").touch()
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    return read_rows(tmp_path / "bad.jsonl")[0]


USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [USER | {"content": "a<|audio_eos|>"}]}, r"the text holds the control token '<\|audio_eos\|>'"),
        ({"messages": [USER, USER]}, r"messages\[0\]: expected a text and its recording"),
        ({"messages": [USER | {"content": "<|audio|>"}], "audios": ["0.wav"]}, r"messages\[0\]: expected the text to"),
        ({"messages": [{"role": "system", "content": "a"}, USER]}, "expected none from the system"),
        ({"messages": [USER], "speakers": ["0"]}, r"speakers: expected 1 numbers from 0 on.*got \[\"0\"\]"),
        ({"messages": [USER], "labels": {"emotion": "Hapy"}}, "Happy"),
    ],
)
def test_what_it_cannot_speak_is_one_line(lm, tmp_path, row, complaint):
    with pytest.raises(InputError, match=rf"bad.jsonl:1: .*{complaint}"):
        lm.encode_prompt(row_of(tmp_path, **row), EncodedAudio(lm.codec))


# ---- where a TTS model is taken ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talkative(tmp_path_factory) -> Path:
    """One that says no code that its codec does not have."""
    return csm.checkpoint(tmp_path_factory.mktemp("models") / "talkative", seed=2, ending=4, spare=0)


def elocute(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_speak(talkative, tmp_path, capsys):
    elocute("speak", talkative, "--text", "Nine.", "--emotion", "Happy", "-o", tmp_path / "a.wav", "--json")
    found = json.loads(capsys.readouterr().out)
    waveform, rate = load_audio(tmp_path / "a.wav", silent=True)
    assert rate == 24000 and len(waveform) == 1920 * found["units"] > 0 and found["labels"] == {"emotion": "Happy"}
    with pytest.raises(InputError, match="labels.emotion: no such label: 'Hapy'"):
        elocute("speak", talkative, "--text", "Nine.", "--emotion", "Hapy", "-o", tmp_path / "b.wav")


def test_verbs_that_ask_say_that_it_reads(talkative):
    with pytest.raises(InputError, match="a TTS model reads a text aloud, it answers no questions"):
        elocute("chat", talkative, "--text", "When?")


def test_a_run_reads_held_out_rows_before_and_after(talkative, rows, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    lines = rows.read_text().splitlines()[:2]
    held_out.write_text("\n".join(lines) + "\n")
    for number in range(len(WAVS)):
        (tmp_path / f"{number}.wav").write_bytes((rows.parent / f"{number}.wav").read_bytes())
    elocute(
        "train", "recipes/starter/wavalign.yaml", f"model={talkative}", f"data.train={rows}", f"data.eval={held_out}",
        f"run_dir={tmp_path / 'run'}", "steps=1", "objective={mixing: {kind: fixed, value: 0}, sft: {scope: all}, "
        "kl: {text: 0, speech: 0}}", "rewards=[]", "rollout.max_new_tokens=6", "rollout.prompts_per_step=1",
    )  # fmt: skip
    values = json.loads((tmp_path / "run/eval.json").read_text())
    assert {"before", "after"} <= values.keys() and (tmp_path / "run/samples/after.jsonl").is_file()
