"""What the benchmarks of speed count is what there is to count."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import plain
from benchmarks.plain import Work
from benchmarks.training_flops import padding, passes
from elocute.models.layout import Tokens
from elocute.training.update import Rows

SIZES = dict(vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3)


@torch.no_grad()
def test_flops_are_those_that_torch_counts():
    config = Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2)
    network = Qwen2ForCausalLM._from_config(config, attn_implementation="eager")  # it computes what causality masks
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 11, dtype=torch.long))
    assert plain.forward_flops(config, 11, 11) + plain.head_flops(config, 11) == counter.get_total_flops()


def test_padding_is_what_is_worked_on_beside_the_tokens():
    short, long = torch.zeros(3), torch.zeros(5)
    answers = [Tokens(*torch.zeros(3, length, dtype=torch.long)) for length in (4, 6, 10)]
    rows = Rows.of([short, short, long], answers)
    assert padding(rows, [[0, 1, 2]]) == 1 - (20 + 8) / (3 * 10 + 2 * 5)
    assert padding(rows, [[0], [2, 1]]) == 1 - (20 + 8) / (4 + 3 + 2 * 10 + 2 * 5)
    assert padding(rows, [[0], [1], [2]]) == 1 - (20 + 8) / (20 + 3 + 3 + 5)


def test_a_pairs_answers_stay_together():
    prompts = [torch.zeros(3), torch.zeros(3)]
    answers = [Tokens(*torch.zeros(3, length, dtype=torch.long)) for length in (40, 399, 400, 30)]
    rows, work = Rows.of([prompts[0]] * 2 + [prompts[1]] * 2, answers), Work("starter", None, 2, 2, 400, 4, 1, 1)
    alone = passes(rows, work, pairs=False)["pieces"]
    assert {frozenset(piece) for piece in alone} == {frozenset({0, 3}), frozenset({1, 2})}
    found = passes(rows, work, pairs=True)
    assert found["pieces"] == [[0, 1, 2, 3]]
    assert found["padding"] == found["padding_in_order"] == 1 - (869 + 6) / (4 * 400 + 2 * 3)
