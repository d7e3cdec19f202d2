"""Kimi-Audio's network: the published equations, a cache, a batch, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from elocute.models.kimi import KimiForCausalLM, load_network
from elocute.recipe.schema import Lora
from tests.contracts import kimi
from tests.contracts.kimi import Sizes, streams, tensors

SIZES = Sizes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi") / "Kimi-Audio-7B-Instruct")


@pytest.fixture(scope="module")
def network(folder) -> KimiForCausalLM:
    return load_network(folder)


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


def test_text_id_0_is_text_alone_as_in_company(network):
    """The original takes a pass whose text ids are all 0 for one without text."""
    audio = streams(3, 2, 6)["audio_ids"]
    text = torch.zeros_like(audio)
    text[1, 0] = 1
    with torch.no_grad():
        together, alone = network(audio, text), network(audio[:1], text[:1])
        assert torch.allclose(together.text[:1], alone.text, atol=1e-5)
        assert not torch.allclose(network(audio[:1]).text, alone.text, atol=1e-3)


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


def test_one_prompts_keys_serve_several_answers(network):
    given, answers = streams(14, 1, 6), streams(15, 3, 4)
    with torch.no_grad():
        cache = network(**given, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([0, 0, 0]))
        out = network(answers["audio_ids"], answers["text_ids"], past_key_values=cache, use_cache=True)
        for row in range(3):
            ids = {
                name: torch.cat([given[name], answers[name][row : row + 1]], 1) for name in ("audio_ids", "text_ids")
            }
            heard = torch.nn.functional.pad(given["continuous"], (0, 4))
            alone = network(**ids, features=given["features"], continuous=heard)
            assert torch.allclose(out.audio[row], alone.audio[0, 6:], atol=1e-5)
            assert torch.allclose(out.text[row], alone.text[0, 6:], atol=1e-5)


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
