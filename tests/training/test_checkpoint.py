"""Checkpoints that are not this model's: one line, and no weight is touched."""

import pytest
import torch

from elocute.errors import InputError
from elocute.training.checkpoint import load_weights, save_checkpoint


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (torch.nn.Linear(4, 3), "parameter weight: expected the shape [2, 4], got [3, 4]"),
        (torch.nn.Linear(4, 2, bias=False), "parameter bias does not match"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, other, complaint):
    save_checkpoint(tmp_path / "step-1", other, torch.optim.AdamW(other.parameters()), {})
    mine = torch.nn.Linear(4, 2)
    before = mine.weight.detach().clone()
    with pytest.raises(InputError) as caught:
        load_weights(tmp_path / "step-1", mine)
    assert str(caught.value) == f"{tmp_path / 'step-1'}: checkpoint of another model or LoRA setting: {complaint}"
    assert torch.equal(mine.weight, before)
