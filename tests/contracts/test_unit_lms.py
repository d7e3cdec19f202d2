"""TWIST's and SlamKit's published folders through the public path: read as they are, sampled, scored, saved."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import UnitLM, check_model, codec_folder, load_model
from elocute.models.batch import make_batch
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.contracts import slamkit, twist, unit_sound
from tests.contracts.unit_sound import UNITS
from tests.speech.unit_models import speech

MAKERS = {
    "TWIST-350M": twist.opt,
    "TWIST-1.3B": lambda place: twist.opt(place, before=True),
    "TWIST-7B": twist.llama,
    "slam": slamkit.slam,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    unit_sound.build(home / "unit-codec")
    for name, make in MAKERS.items():
        make(home / name)
    return home


@pytest.fixture(scope="module", params=MAKERS)
def lm(request, home) -> UnitLM:
    return load_model(home / request.param)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(3):
        save_wav(home / f"{number}.wav", speech(0.6 + 0.3 * number, seed=number), 16000)
        asked = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": [f"{number}.wav"]}
        lines.append(asked | {"sft_target_audio": "0.wav", "rejected_audio": "1.wav"})
    (home / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home / "rows.jsonl"


@pytest.mark.parametrize("name", MAKERS)
def test_the_published_folder_is_enough(home, name):
    assert not (home / name / "elocute.json").exists()
    check_model(home / name)
    lm, own = load_model(home / name), name == "slam"
    assert codec_folder(home / name) == (home / "unit-codec").resolve() and lm.codec.n_units == UNITS
    assert (lm.layout.first_unit, lm.bos, lm.layout.answer_end) == ((2, 1, 1) if own else (twist.OFFSET, None, None))


def test_score_is_sample(lm, rows):
    audio = EncodedAudio(lm.codec)
    prompts = [lm.encode_prompt(row, audio) for row in read_rows(rows)]
    groups = sample_groups(lm, prompts, [[10 * p + n for n in range(3)] for p in range(3)], Sampling(16, 0.8))
    rollouts = [rollout for group in groups for rollout in group]
    longest = max(len(rollout.tokens) for rollout in rollouts)
    action = torch.stack([torch.arange(longest) < len(rollout.tokens) for rollout in rollouts])
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], action, "cpu")
    for share_prompts in (True, False):
        with torch.no_grad():
            logp = Policy(lm, share_prompts=share_prompts)(batch, 0.8)[0]
        assert (logp - torch.cat([rollout.logprob for rollout in rollouts])).abs().max() < 1e-5


def test_a_saved_folder_has_the_names_it_came_with(home, lm, tmp_path, request):
    name = request.node.callspec.params["lm"]
    changed = load_model(home / name)
    changed.model = get_peft_model(changed.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    changed.save(tmp_path / "saved")
    before, after = slamkit.weights(home / name), slamkit.weights(tmp_path / "saved")
    tied = {"lm_head.weight"} if name != "TWIST-7B" else set()  # one of two copies of one tensor
    assert set(before) - set(after) <= tied and set(after) <= set(before)
    assert {key for key in after if not torch.equal(before[key], after[key])} == {k for k in after if "q_proj.w" in k}
    again, ids = load_model(tmp_path / "saved"), torch.arange(UNITS)[None] + 2
    assert torch.allclose(again.model(ids).logits, changed.model(ids).logits, atol=1e-5)
    said = [json.loads((where / "config.json").read_text()) for where in (home / name, tmp_path / "saved")]
    assert said[0] == said[1]  # by the keys that the original's transformers reads: rope_theta, torch_dtype


def test_what_lay_beside_the_weights_goes_along(home, tmp_path):
    """And the config as it was, though another transformers reads it: `rope_theta` would be lost on the original's."""
    shutil.copytree(home / "TWIST-7B", tmp_path / "TWIST")
    (tmp_path / "unit-codec").symlink_to(home / "unit-codec")
    config = json.loads((tmp_path / "TWIST/config.json").read_text()) | {"rope_theta": 5000.0, "torch_dtype": "float16"}
    (tmp_path / "TWIST/config.json").write_text(json.dumps(config))
    (tmp_path / "TWIST/LICENSE").write_text("for research")
    lm = load_model(tmp_path / "TWIST")
    lm.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text()) == config | {"torch_dtype": "float32"}
    for name in ("LICENSE", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_text() == (tmp_path / "TWIST" / name).read_text()
    ids = torch.arange(UNITS)[None] + twist.OFFSET
    assert torch.equal(load_model(tmp_path / "saved").model(ids).logits, lm.model(ids).logits)
    shutil.rmtree(tmp_path / "TWIST")
    with pytest.raises(InputError, match="TWIST: gone"):
        lm.save(tmp_path / "again")


@pytest.mark.parametrize("objective", ["{mixing: {kind: fixed, value: 0.5}, policy_gradient: {scope: speech}}",
                                       "{kind: dpo, mode: offline, scope: speech}"])  # fmt: skip
@pytest.mark.parametrize("name", ["TWIST-350M", "slam"])
def test_one_step_moves_the_adapter_only(home, rows, tmp_path, name, objective):
    (tmp_path / "loud.py").write_text(
        "def loud(waveforms, **_):\n    return [float(abs(w).mean()) for w in waveforms]\n"
    )
    judge = f"[{{kind: function, name: loud, function: '{tmp_path}/loud.py:loud', low: 0, high: 1}}]"
    words = [
        f"model={home / name}", f"data.train={rows}", "data.eval=null", f"run_dir={tmp_path / 'run'}", "steps=1",
        f"objective={objective}", f"rewards={'[]' if 'dpo' in objective else judge}", "rollout.group_size=2",
        "lora={rank: 2, targets: [q_proj, out_proj, fc1, gate_proj]}", "rollout.prompts_per_step=3",
        "rollout.max_new_tokens=12", "optim.warmup_steps=0", "optim.lr=0.01", f"data.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    trainer = Trainer(load_recipe("recipes/starter/wavalign.yaml", words))
    before = {n: p.detach().clone() for n, p in trainer.lm.model.named_parameters()}
    assert trainer.train()
    trainer.close()
    moved = {n for n, p in trainer.lm.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved and all("lora_" in name for name in moved)


# traps


@pytest.mark.parametrize("offset", [0, 1, 7])
def test_trap_the_offset_is_the_folders(home, tmp_path, offset):
    shutil.copytree(home / "unit-codec", tmp_path / "unit-codec")
    lm = load_model(twist.opt(tmp_path / "TWIST", offset=offset))
    assert lm.layout.assemble([], [0, 5]).ids.tolist() == [offset, offset + 5]


def test_trap_an_opt_without_offset_is_a_text_model(home, tmp_path):
    folder = twist.opt(tmp_path / "opt-350m")
    said = json.loads((folder / "config.json").read_text())
    del said["offset"]
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="elocute.json: expected beside the model's config.json"):
        check_model(folder)
    # What the page says where a copy has lost its offset.
    (folder / "elocute.json").write_text(json.dumps({"kind": "units", "codec": str(home / "unit-codec"), "unit_0": 4}))
    assert load_model(folder).layout.first_unit == 4


def test_trap_the_norms_of_350m_stand_behind_and_positions_begin_at_two(home):
    ids = torch.tensor([4, 9, 5, 23, 11])
    expected = naive_opt(slamkit.weights(home / "TWIST-350M"), ids)
    assert torch.allclose(load_model(home / "TWIST-350M").model(ids[None]).logits[0].double(), expected, atol=1e-4)


@pytest.mark.parametrize("theta", [10000.0, 300.0])
@pytest.mark.parametrize("stored", [slamkit.EMBEDDINGS[:1], slamkit.EMBEDDINGS[1:], slamkit.EMBEDDINGS])
def test_trap_slams_rotary_base_and_its_tied_head_under_either_name(home, tmp_path, theta, stored):
    (tmp_path / "unit-codec").symlink_to(home / "unit-codec")
    folder = slamkit.slam(tmp_path / "slam", stored, theta)
    ids = torch.tensor([1, 9, 5, 20, 11, 3])
    state = slamkit.weights(folder)
    table = state[stored[0]]
    expected = naive_qwen2({name.removeprefix("lm."): tensor for name, tensor in state.items()}, table, ids, theta)
    assert torch.allclose(load_model(folder).model(ids[None]).logits[0].double(), expected, atol=1e-4)


def test_trap_old_folders_are_pickled_and_never_run(home, tmp_path):
    (tmp_path / "unit-codec").symlink_to(home / "unit-codec")
    lm = load_model(twist.opt(tmp_path / "TWIST", pickled=True))
    ids = torch.arange(UNITS)[None] + 4
    assert torch.equal(lm.model(ids).logits, load_model(home / "TWIST-350M").model(ids).logits)
    lm.save(tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").is_file()

    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Runs()}, tmp_path / "TWIST/pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Unsupported|not a model"):
        load_model(tmp_path / "TWIST")
    assert not (tmp_path / "ran").exists()


def test_trap_slam_begins_and_ends_with_its_mark_and_twist_with_none(home, rows):
    row, said = read_rows(rows)[0], {}
    for name in ("TWIST-350M", "slam"):
        lm = load_model(home / name)
        audio = EncodedAudio(lm.codec)
        heard, first = audio.units(row.audios[0]).tolist(), lm.layout.first_unit
        prompt, target = lm.encode_prompt(row, audio), lm.encode_target(row, audio)
        bare = [first + unit for unit in heard]
        assert prompt.tolist() == ([1, *bare] if name == "slam" else bare)
        assert target.ids.tolist() == ([*bare, 1] if name == "slam" else bare)  # the target is the same recording
        assert target.action.all() and not target.text.any()
        said[name] = lm
    pad = said["slam"].layout.read([0])  # <PAD> is no unit
    assert pad.broken
    # Repeats are legal input to the vocoder: merged, as units are without them.
    again = said["slam"].decode(torch.tensor([4, 4, 4, 9])).waveform
    assert (again == said["slam"].decode(torch.tensor([4, 9])).waveform).all()


def test_trap_what_does_not_fit_learnt_positions_is_refused(home, rows):
    lm = load_model(home / "TWIST-350M")
    prompt = lm.encode_prompt(read_rows(rows)[0], EncodedAudio(lm.codec))
    with pytest.raises(InputError, match=f"the model's context holds {twist.CONTEXT}"):
        sample_groups(lm, [prompt], [[1, 2]], Sampling(twist.CONTEXT))


def test_trap_slamkit_pads_and_twist_does_not(home, tmp_path):
    unit_sound.build(tmp_path / "unit-codec", pad_samples=40)
    shutil.copytree(home / "slam", tmp_path / "slam")
    padded, plain = load_model(tmp_path / "slam").codec, load_model(home / "slam").codec
    assert padded.digest != plain.digest
    second = speech(1.0, seed=1)
    frames = [len(codec.tokenizer.features(second)) for codec in (padded, plain)]
    assert frames == [25, 24]  # one second gives 25 frames with the padding only


@pytest.mark.parametrize(
    ("kind", "sizes", "count"),
    [
        ("opt", {"hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "word_embed_proj_dim": 512, "do_layer_norm_before": False}, 305.7e6),
        ("opt", {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
                 "word_embed_proj_dim": 2048}, 1.214e9),
        ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                   "num_key_value_heads": 2, "tie_word_embeddings": True}, 358e6),
    ],
    ids=["TWIST-350M", "TWIST-1.3B", "slam"],
)  # fmt: skip
def test_the_published_sizes(kind, sizes, count):
    """What the page's table of memory is computed from."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=502, **sizes))
    assert network.num_parameters() == pytest.approx(count, rel=1e-3)


def test_what_is_missing_is_one_line(home, tmp_path):
    shutil.copytree(home / "TWIST-350M", tmp_path / "TWIST-350M")
    with pytest.raises(InputError, match="unit-codec: expected unit-codec there, with which TWIST-350M"):
        check_model(tmp_path / "TWIST-350M")
    shutil.copytree(home / "unit-codec", tmp_path / "unit-codec")
    said = json.loads((tmp_path / "TWIST-350M/config.json").read_text())
    (tmp_path / "TWIST-350M/config.json").write_text(json.dumps(said | {"offset": 5}))
    with pytest.raises(
        InputError, match=f"the model has {UNITS + 4} embeddings, its codec needs ids up to {UNITS + 4}"
    ):
        check_model(tmp_path / "TWIST-350M")


# naive twins, in float64


def naive_opt(state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """OPT-350M's kind, token by token of the formulas: logits [T, V]."""
    state = {name.removeprefix("model.decoder."): tensor.double() for name, tensor in state.items()}

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = linear("project_in", state["embed_tokens.weight"][ids]) + state["embed_positions.weight"][2 : 2 + len(ids)]
    for layer in range(twist.LAYERS):
        at = f"layers.{layer}"
        q, k, v = (heads(linear(f"{at}.self_attn.{part}_proj", x)) for part in "qkv")
        x = norm(f"{at}.self_attn_layer_norm", x + linear(f"{at}.self_attn.out_proj", attend(q, k, v)))
        inner = linear(f"{at}.fc1", x).clamp(min=0)
        x = norm(f"{at}.final_layer_norm", x + linear(f"{at}.fc2", inner))
    return linear("project_out", x) @ state["embed_tokens.weight"].T


def naive_qwen2(state: dict[str, torch.Tensor], table: torch.Tensor, ids: torch.Tensor, theta: float) -> torch.Tensor:
    state = {name.removeprefix("model."): tensor.double() for name, tensor in state.items()}

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(name, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def turn(x):  # [heads, T, d]: half against half, position · θ^(−2i/d)
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1])[:, None].double() * theta ** (-torch.arange(half).double() / half)
        one, other = x[..., :half], x[..., half:]
        return torch.cat([one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()], -1)

    x = table.double()[ids]
    for layer in range(twist.LAYERS):
        at = f"layers.{layer}"
        given = norm(f"{at}.input_layernorm", x)
        q = turn(heads(linear(f"{at}.self_attn.q_proj", given)))
        k, v = (heads(linear(f"{at}.self_attn.{part}_proj", given), slamkit.KV_HEADS) for part in "kv")
        shared = twist.HEADS // slamkit.KV_HEADS
        mixed = attend(q, turn(k).repeat_interleave(shared, 0), v.repeat_interleave(shared, 0))
        x = x + linear(f"{at}.self_attn.o_proj", mixed)
        given = norm(f"{at}.post_attention_layernorm", x)
        gate = linear(f"{at}.mlp.gate_proj", given)
        x = x + linear(f"{at}.mlp.down_proj", gate * gate.sigmoid() * linear(f"{at}.mlp.up_proj", given))
    return norm("norm", x) @ table.double().T


def heads(x: torch.Tensor, count: int = twist.HEADS) -> torch.Tensor:
    """[T, heads · d] → [heads, T, d]"""
    return x.view(len(x), count, -1).transpose(0, 1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each [heads, T, d], causal → [T, heads · d]"""
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -math.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)
