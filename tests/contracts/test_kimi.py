"""Kimi-Audio's network: the published equations, the published files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from elocute.errors import InputError
from elocute.models.kimi import (
    KimiForCausalLM,
    check_network,
    load_adaptor,
    load_network,
    load_vocabulary,
    read_config,
    save_network,
)
from elocute.recipe.schema import Lora
from tests.contracts import kimi
from tests.contracts.kimi import Sizes

SIZES = Sizes()
VOCABULARY = kimi.OFFSET + kimi.N_CODES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi") / "Kimi-Audio-7B-Instruct")


@pytest.fixture(scope="module")
def network(folder) -> KimiForCausalLM:
    return load_network(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def streams(seed: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random cells of both streams, some of them heard."""
    generator = torch.Generator().manual_seed(seed)
    continuous = torch.rand(batch, length, generator=generator) < 0.3
    return {
        "audio_ids": torch.randint(1, VOCABULARY, (batch, length), generator=generator),
        "text_ids": torch.randint(1, VOCABULARY, (batch, length), generator=generator),
        "features": torch.randn(int(continuous.sum()), 4 * SIZES.whisper, generator=generator),
        "continuous": continuous,
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that the shards which the index names hold."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {name: load_file(folder / file)[name] for name, file in index["weight_map"].items()}


def edit(folder: Path, **values) -> None:
    said = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in (said | values).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(said))


# the equations


class Naive:
    """Logits of one sequence by the published equations, float64, position by position where plainer."""

    def __init__(self, folder: Path):
        self.weights = {name: tensor.double().numpy() for name, tensor in tensors(folder).items()}

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.weights[f"{name}.weight"]

    def adaptor(self, features):
        x = self.linear(features, "model.vq_adaptor.layers.0")
        x = self.linear(x / (1 + np.exp(-x)), "model.vq_adaptor.layers.3")
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * self.weights["model.vq_adaptor.layers.4.weight"] + self.weights["model.vq_adaptor.layers.4.bias"]

    def turned(self, x):
        """x [T, H, d]: pair (k, k + d/2) of position p turned by p · θ^(−2k/d)."""
        length, _, width = x.shape
        angles = np.arange(length)[:, None] * SIZES.theta ** (-np.arange(width // 2) / (width // 2))
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def layer(self, x, prefix):
        length, width = len(x), SIZES.hidden // SIZES.heads
        normed = self.norm(x, f"{prefix}input_layernorm")
        q, k, v = (
            self.linear(normed, f"{prefix}self_attn.{name}_proj").reshape(length, -1, width) for name in ("q", "k", "v")
        )
        q, k, said = self.turned(q), self.turned(k), np.zeros((length, SIZES.heads, width))
        for head in range(SIZES.heads):
            group = head // (SIZES.heads // SIZES.kv_heads)
            for place in range(length):
                scores = k[: place + 1, group] @ q[place, head] / np.sqrt(width)
                share = np.exp(scores - scores.max())
                said[place, head] = share / share.sum() @ v[: place + 1, group]
        x = x + self.linear(said.reshape(length, -1), f"{prefix}self_attn.o_proj")
        normed = self.norm(x, f"{prefix}post_attention_layernorm")
        gate = self.linear(normed, f"{prefix}mlp.gate_proj")
        return x + self.linear(
            gate / (1 + np.exp(-gate)) * self.linear(normed, f"{prefix}mlp.up_proj"), f"{prefix}mlp.down_proj"
        )

    def logits(self, audio, text, features, continuous):
        """→ (audio, text), each [T, V]."""
        table, rows = self.weights["model.embed_tokens.weight"], iter(features)
        x = []
        for a, t, heard in zip(audio, text, continuous, strict=True):
            cell = table[a]
            if heard:
                cell = np.sqrt(2) * (cell + self.adaptor(next(rows)))
            x.append(cell + table[t])
        x = np.stack(x)
        for index in range(SIZES.layers):
            x = self.layer(x, f"model.layers.{index}.")
            if index == SIZES.branch:
                branch = x
        for index in range(SIZES.mimo):
            branch = self.layer(branch, f"model.mimo_layers.{index}.")
        spoken = self.linear(self.norm(branch, "model.mimo_norm"), "mimo_output")
        return spoken, self.linear(self.norm(x, "model.norm"), "lm_head")


def test_logits_follow_the_published_equations(folder, network):
    given = streams(0, 1, 11)
    audio, text = Naive(folder).logits(
        given["audio_ids"][0].numpy(),
        given["text_ids"][0].numpy(),
        given["features"].double().numpy(),
        given["continuous"][0],
    )
    with torch.no_grad():
        out = network(**given)
    assert np.abs(out.audio[0].numpy() - audio).max() < 1e-4
    assert np.abs(out.text[0].numpy() - text).max() < 1e-4
    assert np.abs(audio - text).max() > 1


def test_the_first_of_the_two_is_audio_as_in_the_published_code(network):
    given = streams(1, 1, 5)
    with torch.no_grad():
        out, hidden = network(**given), network.model(**given)
        assert torch.equal(out[0], network.mimo_output(hidden.audio)) and torch.equal(out[0], out.audio)
        assert torch.equal(out[1], network.lm_head(hidden.text)) and torch.equal(out[1], out.text)


def test_root_two_scales_the_audio_part_alone(network):
    given = streams(2, 1, 16)
    given["text_ids"] = given["text_ids"][:, :1].repeat(1, 16)
    with torch.no_grad():
        table, mask = network.model.embed_tokens.weight, given["continuous"]
        x = network.model.embed(**given) - table[given["text_ids"]]
        audio = table[given["audio_ids"]]
        heard = 2**0.5 * (audio[mask] + network.model.vq_adaptor(given["features"]))
    assert mask.any() and not mask.all()
    assert torch.allclose(x[mask], heard, atol=1e-6) and torch.allclose(x[~mask], audio[~mask], atol=1e-6)


def test_text_of_zeros_alone_is_no_text(network):
    given = {"audio_ids": streams(3, 1, 6)["audio_ids"]}
    zeros = torch.zeros_like(given["audio_ids"])
    with torch.no_grad():
        without = network(**given)
        assert torch.equal(network(**given, text_ids=zeros).text, without.text)
        zeros[0, 0] = 1
        assert not torch.allclose(network(**given, text_ids=zeros).text, without.text, atol=1e-3)


# a cache, a batch, padding


@pytest.mark.parametrize("cut", [1, 7])
def test_cached_steps_equal_the_full_forward_on_both_streams(network, cut):
    given = streams(4, 2, 12)
    given["text_ids"][0, 9] = given["text_ids"][1, 9] = 0  # token 0 in a step of its own is text like any other
    given["continuous"][:, cut:] = False
    given["features"] = given["features"][: given["continuous"].sum()]
    with torch.no_grad():
        full = network(**given)
        prompt = {name: x if name == "features" else x[:, :cut] for name, x in given.items()}
        step = network(**prompt, use_cache=True)
        audio, text = [step.audio], [step.text]
        for place in range(cut, 12):
            now = slice(place, place + 1)
            step = network(
                given["audio_ids"][:, now],
                given["text_ids"][:, now],
                past_key_values=step.past_key_values,
                use_cache=True,
            )
            audio.append(step.audio)
            text.append(step.text)
    assert torch.allclose(torch.cat(audio, 1), full.audio, atol=1e-5)
    assert torch.allclose(torch.cat(text, 1), full.text, atol=1e-5)
    assert len(step.past_key_values.layers) == SIZES.layers + SIZES.mimo


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_each_row_alone(network, left):
    rows = [streams(seed, 1, length) for seed, length in ((5, 9), (6, 4))]
    batch = {"audio_ids": [], "text_ids": [], "continuous": [], "attention_mask": []}
    for row in rows:
        lacking = 9 - row["audio_ids"].shape[1]
        side = (lacking, 0) if left else (0, lacking)
        for name, x in (row | {"attention_mask": torch.ones_like(row["audio_ids"])}).items():
            if name != "features":
                batch[name].append(torch.nn.functional.pad(x, side))
    batch = {name: torch.cat(parts) for name, parts in batch.items()}
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = network(**batch, features=torch.cat([row["features"] for row in rows]), position_ids=positions)
        for index, row in enumerate(rows):
            alone, real = network(**row), batch["attention_mask"][index].bool()
            assert torch.allclose(out.audio[index, real], alone.audio[0], atol=1e-5)
            assert torch.allclose(out.text[index, real], alone.text[0], atol=1e-5)


def test_features_and_their_cells_must_agree(network):
    given = streams(7, 1, 8)
    with pytest.raises(ValueError, match="cells of heard speech"):
        network(**given | {"features": given["features"][1:]})
    with pytest.raises(ValueError, match="come together"):
        network(**given | {"continuous": None})


# training


def test_gradients_reach_every_weight_and_only_through_its_own_head(folder):
    network, given = load_network(folder).train(), streams(8, 2, 6)
    network(**given).text.square().mean().backward()
    silent = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert {name for name in silent if "mimo" not in name} == set() and "mimo_output.weight" in silent
    network(**given).audio.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    given, grads = streams(9, 1, 6), []
    for checkpointing in (False, True):
        network = load_network(folder).train()
        if checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        out = network(**given)
        (out.audio.square().mean() + out.text.square().mean()).backward()
        grads.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-4, atol=1e-6), name


def test_lora_attaches_to_both_stacks_and_merges(folder):
    network, given = load_network(folder), streams(10, 1, 7)
    with torch.no_grad():
        before = network(**given)
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=Lora().targets, init_lora_weights=False))
    carriers = {name.rpartition(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    expected = {f"base_model.model.{name.removesuffix('.weight')}" for name in kimi.shapes() if "_proj.weight" in name}
    assert carriers == expected
    adapted.eval()
    with torch.no_grad():
        tuned = adapted(**given)
        with adapted.disable_adapter():
            off = adapted(**given)
        merged = adapted.merge_and_unload()(**given)
    for stream in ("audio", "text"):
        assert torch.equal(off[stream], before[stream])
        assert (tuned[stream] - before[stream]).abs().max() > 1e-2
        assert torch.allclose(merged[stream], tuned[stream], atol=1e-4)


# the published files


def test_the_builder_has_as_many_tensors_as_the_published_arithmetic_says():
    count = len(kimi.shapes(Sizes(layers=28, mimo=6)))
    assert count == 34 * 12 + 6 + 5 and count + 34 == 453


def test_saved_files_are_the_published_ones(folder, network, tmp_path):
    save_network(network, tmp_path)
    there = {file.name for file in folder.iterdir() if file.is_file()}
    assert {file.name for file in tmp_path.iterdir()} == there
    assert "model-7-of-7.safetensors" in there and "model-8-of-8.safetensors" in there
    before, after = tensors(folder), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    old, new = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    assert new == old | {"torch_dtype": "float32"}
    old, new = (json.loads((place / "model.safetensors.index.json").read_text()) for place in (folder, tmp_path))
    assert new == old
    for name in ("tiktoken.model", "tokenizer_config.json", "modeling_moonshot_kimia.py"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_was_saved_loads_again(network, tmp_path):
    tuned = load_network(save(network, tmp_path / "one"))
    with torch.no_grad():
        tuned.mimo_output.weight += 1
    again, given = load_network(save(tuned, tmp_path / "two")), streams(11, 1, 5)
    with torch.no_grad():
        assert torch.equal(again(**given).audio, tuned(**given).audio)
        assert torch.equal(again(**given).text, network(**given).text)
    assert load_vocabulary(tmp_path / "two")[1] == load_vocabulary(tmp_path / "one")[1]


def save(network: KimiForCausalLM, folder: Path) -> Path:
    save_network(network, folder)
    return folder


def test_the_source_may_go_once_it_is_loaded(copy, network, tmp_path):
    loaded = load_network(copy)
    shutil.rmtree(copy)
    given = streams(12, 1, 4)
    with torch.no_grad():
        assert torch.equal(load_network(save(loaded, tmp_path / "new"))(**given).text, network(**given).text)


def test_heads_and_embeddings_are_three_matrices(network):
    owned = {tensor.data_ptr() for tensor in (network.model.embed_tokens.weight, network.lm_head.weight)}
    assert len(owned | {network.mimo_output.weight.data_ptr()}) == 3


def test_bfloat16_is_loaded_and_saved_as_such(folder, tmp_path):
    network = load_network(folder, dtype="auto")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    save_network(network, tmp_path)
    assert tensors(tmp_path)["lm_head.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_adaptor_loads_alone(folder, network):
    adaptor, features = load_adaptor(folder), torch.randn(3, 4 * SIZES.whisper)
    with torch.no_grad():
        assert torch.equal(adaptor(features), network.model.vq_adaptor(features))
        naive = Naive(folder).adaptor(features.double().numpy())
        assert np.abs(adaptor(features).numpy() - naive).max() < 1e-5


def test_weights_in_one_file_load_too(copy, network, tmp_path):
    save_as_one(copy)
    given = streams(13, 1, 4)
    with torch.no_grad():
        assert torch.equal(load_network(copy)(**given).audio, network(**given).audio)
    saved = save(load_network(copy), tmp_path / "saved")
    assert {file.name for file in saved.glob("*.safetensors*")} == {"model.safetensors"}
    load_network(saved)


def save_as_one(folder: Path) -> None:
    from safetensors.torch import save_file

    together = tensors(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(together, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_real_sizes_are_those_of_the_published_weights():
    from elocute.models.kimi import KimiConfig

    config = KimiConfig(
        vocab_size=168448, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    with torch.device("meta"):
        state = KimiForCausalLM(config).state_dict()
    assert len(state) == 419 and sum(2 * tensor.numel() for tensor in state.values()) == 19_532_668_928


# rope_theta: where 10000 silently wins


def test_rope_theta_is_read_from_the_older_key(network):
    assert network.config.rope_parameters["rope_theta"] == SIZES.theta
    half = SIZES.hidden // SIZES.heads // 2
    expected = SIZES.theta ** (-torch.arange(half) / half)
    assert torch.allclose(network.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("said", [10000.0, ...])
def test_a_rope_theta_that_the_weights_were_not_trained_with_is_refused(copy, said):
    edit(copy, rope_theta=said)
    with pytest.raises(InputError, match=r"rope_theta: config.json says 10000.*about 1e\+06"):
        load_network(copy)


def test_without_a_key_rope_theta_is_the_originals_default(tmp_path):
    folder = kimi.build(tmp_path / "small", Sizes(theta=10000.0))
    edit(folder, rope_theta=...)
    assert load_network(folder).config.rope_parameters["rope_theta"] == 10000.0


# bad input: one line, before a weight is read


@pytest.mark.parametrize("kind", ["moonshot_kimia", "kimi_audio", ...])
def test_model_type_does_not_matter(copy, kind):
    edit(copy, model_type=kind)
    assert read_config(copy).kimia_token_offset == kimi.OFFSET


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"kimia_mimo_layers": ...}, "kimia_mimo_layers: expected a positive integer, got None"),
        ({"kimia_mimo_transformer_from_layer_index": 4}, "expected a layer below 4, got 4"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected false"),
        ({"use_whisper_feature": False}, "use_whisper_feature: expected true"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_theta": "high"}, "rope_theta"),
        ({"vocab_size": kimi.OFFSET}, "leaves no code"),
        ({"vocab_size": VOCABULARY + 1}, r"embed_tokens.weight: config.json asks for"),
        ({"num_hidden_layers": 5}, "the weights lack model.layers.4."),
        ({"num_hidden_layers": 3}, "the weights hold model.layers.3."),
        ({"kimia_adaptor_input_dim": 5120}, "vq_adaptor"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(copy, values, message):
    edit(copy, **values)
    with pytest.raises(InputError, match=message) as caught:
        load_network(copy)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(copy):
    (copy / "model-3-of-7.safetensors").unlink()
    with pytest.raises(InputError, match="model-3-of-7.safetensors: missing"):
        check_network(copy)


def test_a_damaged_shard_is_named(copy):
    shard = copy / "model-3-of-7.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match="model-3-of-7.safetensors: not a safetensors file"):
        load_network(copy)


def test_a_shard_without_what_the_index_says_is_named(copy):
    shutil.copyfile(copy / "model-3-of-7.safetensors", copy / "model-2-of-7.safetensors")
    with pytest.raises(InputError, match=r"model-2-of-7.safetensors: lacks model.layers.1\."):
        load_network(copy)


def test_an_index_that_points_elsewhere_is_refused(copy):
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-3-of-7', '"../model-3-of-7'))
    with pytest.raises(InputError, match="names of files beside it"):
        load_network(copy)


def test_a_folder_of_nothing_is_one_line(tmp_path):
    with pytest.raises(InputError, match="config.json: not the config of a Kimi-Audio"):
        load_network(tmp_path)
