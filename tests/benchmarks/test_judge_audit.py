"""What the audit keeps between two calls is the signals of these weights and this code."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import judge_audit
from benchmarks.judge_audit import Signals, source_of
from elocute.rewards.coherence import CoherenceReward
from elocute.rewards.relatedness import RelatednessReward
from tests.rewards import tiny_models

PAIRS = [("the cat sat", "on the mat"), ("the dog ran", "far away")]


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_audit, "RUN", tmp_path)


def signals(judge) -> np.ndarray:
    return Signals("coherence", judge)(PAIRS, lambda *_: None)


def test_defect_align_3_other_weights_get_signals_of_their_own(tmp_path, monkeypatch):
    """One file for all, and no tokenizer, judge or text gets what is another's."""
    folder = tiny_models.causal(tmp_path / "lm")
    first = signals(CoherenceReward("c", folder, device="cpu"))
    weights = load_file(folder / "model.safetensors")
    others = {name: tensor + 0.5 * torch.randn(tensor.shape) for name, tensor in weights.items()}
    save_file(others, folder / "model.safetensors", {"format": "pt"})
    judge = CoherenceReward("c", folder, device="cpu")
    found = signals(judge)
    assert np.array_equal(found, judge.signals(*zip(*PAIRS, strict=True))) and not np.allclose(found, first)
    monkeypatch.setattr(judge.lm, "log_probs", None)  # what is there is not judged again
    assert np.array_equal(signals(judge), found)


def test_code_that_changes_signals_changes_their_source(tmp_path, monkeypatch):
    encoder = tiny_models.bert(tmp_path / "encoder")
    judge = RelatednessReward("r", encoder, device="cpu")
    known = [source_of(judge)]
    with monkeypatch.context() as patch:
        patch.setattr(judge_audit, "normalise", signals)  # spelt by another module
        known.append(source_of(judge))
    with monkeypatch.context() as patch:
        patch.setattr(RelatednessReward, "signals", lambda self, prompts, texts: None)
        known.append(source_of(judge))
    assert len(set(known)) == 3 and source_of(judge) == known[0]
    assert source_of(RelatednessReward("again", encoder, batch_size=1, device="cpu")) == known[0]
