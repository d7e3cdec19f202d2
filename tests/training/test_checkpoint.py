"""Checkpoints that are not this model's, or for which there is no room: one line, and nothing is touched."""

import pytest
import torch

from elocute.errors import InputError, RunError
from elocute.training.checkpoint import latest_checkpoint, load_weights, save_checkpoint
from tests.training.disk import full_disk


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


@pytest.mark.parametrize("room", [100_000, 200_000, 500_000], ids=["weights", "optimizer", "state"])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, room):
    module = torch.nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(200)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "step-1", module, optimizer, {"step": 1})
    with full_disk(room), pytest.raises(RunError) as caught:
        save_checkpoint(tmp_path / "step-2", module, optimizer, {"step": 2, "long": "." * 1_000_000})
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'step-2'}: cannot be written (") and "File too large" in said
    assert "\n" not in said and [path.name for path in tmp_path.iterdir()] == ["step-1"]
    load_weights(latest_checkpoint(tmp_path), module)
    save_checkpoint(tmp_path / "step-2", module, optimizer, {"step": 2})
    assert latest_checkpoint(tmp_path) == tmp_path / "step-2"
