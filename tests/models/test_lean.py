"""A lean step of decoding says what transformers' modules say, row for row, and is taken only where it does."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from elocute.models import lean, one_stream
from elocute.models.speech_lm import SpeechLM

SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=64)
PADDED = [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8, 9, 10, 11])]
EVEN = [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])]


def llama(**other):
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"num_attention_heads": 4} | other))


def qwen2():
    """Fewer heads of keys than of queries, and biases, which do something."""
    network = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2))
    for layer in network.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(part.bias)
    return network


def adapted(**how):
    """LoRA on every layer, whose B is not 0."""
    network = get_peft_model(qwen2(), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **how))
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return network


def speech_lm(network) -> SpeechLM:
    torch.nn.init.normal_(network.get_input_embeddings().weight)
    for module in network.modules():
        if "RMSNorm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, 1, 0.3)
    return SpeechLM(network.eval(), None, None, {})


def decoder(lm: SpeechLM):
    return next(lm.decoders(EVEN, 2, []))


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PADDED, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize("make", [llama, qwen2, adapted])
def test_a_lean_step_is_transformers_step(make, prompts, monkeypatch):
    """Whichever answers end: a whole group's, the first ones', those in the last slots."""
    monkeypatch.setattr(lean, "ROOM", 3)
    torch.manual_seed(0)
    lm = speech_lm(make())
    both = one_stream.Decoder(lm, prompts, 4), lean.Decoder(lm, prompts, 4)
    rows = torch.arange(8)
    leave = {1: [0, 5], 3: [7], 4: [1, 2, 3], 6: [4]}
    for step in range(9):
        ids = torch.randint(50, (len(rows), 1))
        for decoder in both:
            decoder.step(ids)
        [theirs], [ours] = (decoder.hidden for decoder in both)
        assert theirs.shape == ours.shape == (len(rows), 32) and theirs.std() > 0.5
        assert torch.allclose(theirs, ours, atol=1e-5)
        if step in leave:
            stays = ~torch.isin(rows, torch.tensor(leave[step]))
            rows = rows[stays]
            for decoder in both:
                decoder.keep(stays.nonzero()[:, 0])


@torch.no_grad()
def test_prompts_are_kept_once_and_an_ended_answer_moves_one_other():
    torch.manual_seed(0)
    grown = lean.Decoder(speech_lm(llama()), EVEN, 4)
    grown.step(torch.zeros(8, 1, dtype=torch.long))
    [first, *_] = grown.read
    assert len(first.prompt_keys) == len(first.prompt_values) == 2 * 4  # prompts × heads, not answers
    place, before = first.own.data_ptr(), first.own[:, :, :, :1].clone()
    grown.keep(torch.tensor([0, 2, 3, 4, 5, 6, 7]))
    assert first.own.data_ptr() == place
    assert first.own[:, :7, :, :1].equal(before[:, [0, 7, 2, 3, 4, 5, 6]])


@torch.no_grad()
def test_an_adapter_that_is_off_is_not_in_the_weights():
    torch.manual_seed(0)
    network = adapted()
    lm = speech_lm(network)
    on = decoder(lm).layers[0].down
    with network.disable_adapter():
        off = decoder(lm).layers[0].down
    assert off.equal(lm.trunk().layers[0].mlp.down_proj.base_layer.weight.t()) and not torch.allclose(on, off)


@pytest.mark.parametrize(
    "network",
    [
        lambda: llama().bfloat16(),
        lambda: llama(mlp_bias=True),
        lambda: llama(attention_bias=True),
        lambda: llama(hidden_act="gelu"),
        lambda: adapted(use_dora=True),
        lambda: MistralForCausalLM(MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)),
    ],
    ids=["bfloat16", "mlp bias", "output bias", "gelu", "DoRA", "another kind"],
)
def test_other_networks_go_through_their_modules(network):
    assert type(decoder(speech_lm(network()))) is one_stream.Decoder


@pytest.mark.parametrize(
    "make",
    [
        llama,
        qwen2,
        lambda: llama(mlp_bias=True),
        lambda: llama(attention_bias=True),
        lambda: llama(hidden_act="gelu"),
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_attention_heads=4, use_sliding_window=True)),
        lambda: MistralForCausalLM(MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)),
    ],
    ids=["Llama", "Qwen2", "mlp bias", "output bias", "gelu", "sliding window", "another kind"],
)
def test_a_config_says_which_network_will_fit(make):
    network = make()
    said = lean.would_fit(network.config.to_dict(), dict(network.named_parameters()))
    assert said == lean.fits(network.base_model)


def test_computing_in_another_type_goes_through_the_modules():
    lm = speech_lm(llama())
    assert type(decoder(lm)) is lean.Decoder
    lm.compute = torch.bfloat16
    assert type(decoder(lm)) is one_stream.Decoder
