"""The composed loss against a float64 twin in plain loops, and what must not change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.objectives.tokens import modality_weights, scope_mask, token_coefficients
from elocute.objectives.wavalign import wavalign_loss

LAM, BETA_TEXT, BETA_SPEECH, CLIP = 0.3, 0.01, 0.02, (0.2, 0.2)


def problem(seed=0, rows=4, length=6):
    generator = torch.Generator().manual_seed(seed)

    def logps():
        return -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)

    old = logps()
    return {
        "text": torch.rand(rows, length, generator=generator) < 0.5,
        "action": torch.rand(rows, length, generator=generator) < 0.7,
        "sft_logp": logps(),
        "logp": old + 0.3 * torch.randn(rows, length, generator=generator, dtype=torch.float64),
        "old_logp": old,
        "ref_logp": logps(),
        "importance": 2 * torch.rand(rows, length, generator=generator, dtype=torch.float64),
        "advantage": torch.randn(rows, 1, generator=generator, dtype=torch.float64),
    }


def coefficients(text, mask, totals_of, weights=(1.0, 1.0)):
    rows, tokens = len(totals_of), int(totals_of.sum())
    return modality_weights(text, *weights) * token_coefficients(mask, rows_total=rows, tokens_total=tokens)


def masks(p):
    return {
        "sft_coefficient": scope_mask(p["text"], p["action"], "all"),
        "coefficient": scope_mask(p["text"], p["action"], "text"),
        "kl_text_coefficient": scope_mask(p["text"], p["action"], "text"),
        "kl_speech_coefficient": scope_mask(p["text"], p["action"], "speech"),
    }


def loss(p, rows=slice(None), **changes):
    """The loss of some rows, normalised over all of them. SFT's speech weight is 0.5."""
    built = {
        name: coefficients(p["text"], mask, mask, (1.0, 0.5) if name == "sft_coefficient" else (1.0, 1.0))[rows]
        for name, mask in masks(p).items()
    }
    per_token = {name: value[rows] for name, value in p.items() if name not in ("text", "action")}
    arguments = {"lam": LAM, "clip": CLIP, "beta_text": BETA_TEXT, "beta_speech": BETA_SPEECH}
    return wavalign_loss(**(arguments | per_token | built | changes))


def twin(p):
    """(total, components), token by token."""
    parts = {"sft": 0.0, "policy_gradient": 0.0, "kl_text": 0.0, "kl_speech": 0.0}
    rows, length = p["text"].shape
    for b in range(rows):
        chosen = {
            "sft": [t for t in range(length) if p["action"][b, t]],
            "policy_gradient": [t for t in range(length) if p["action"][b, t] and p["text"][b, t]],
            "kl_speech": [t for t in range(length) if p["action"][b, t] and not p["text"][b, t]],
        }
        chosen["kl_text"] = chosen["policy_gradient"]
        for name, places in chosen.items():
            for t in places:
                logp, old, ref = (p[key][b, t].item() for key in ("logp", "old_logp", "ref_logp"))
                if name == "sft":
                    value = -p["sft_logp"][b, t].item() * (1.0 if p["text"][b, t] else 0.5)
                elif name == "policy_gradient":
                    ratio, advantage = math.exp(logp - old), p["advantage"][b, 0].item()
                    clipped = min(max(ratio, 1 - CLIP[0]), 1 + CLIP[1])
                    value = -min(ratio * advantage, clipped * advantage) * p["importance"][b, t].item()
                else:
                    value = math.exp(ref - logp) - (ref - logp) - 1
                parts[name] += value / len(places) / rows
    total = (1 - LAM) * parts["sft"] + LAM * parts["policy_gradient"]
    return total + BETA_TEXT * parts["kl_text"] + BETA_SPEECH * parts["kl_speech"], parts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 8))
def test_equals_the_twin(seed, rows, length):
    p = problem(seed, rows, length)
    ours = loss(p)
    total, parts = twin(p)
    assert ours.total.item() == pytest.approx(total, rel=1e-6, abs=1e-7)  # coefficients are float32
    assert {name: c.value.item() for name, c in ours.components.items()} == pytest.approx(parts, rel=1e-6, abs=1e-7)
    counts = {name.removesuffix("coefficient").rstrip("_") or "policy_gradient": int(m.sum())
              for name, m in masks(p).items()}
    assert {name: c.tokens for name, c in ours.components.items()} == counts


def gradient(p, **changes):
    leaves = {name: p[name].clone().requires_grad_() for name in ("logp", "sft_logp")}
    result = loss(p | leaves, **changes)
    result.total.backward()
    return result.total.detach(), leaves["logp"].grad, leaves["sft_logp"].grad


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_contribute_exactly_nothing(seed, junk):
    p = problem(seed)
    dirty = {
        name: torch.where(p["action"], value, junk) if value.shape == p["text"].shape and value.is_floating_point()
        else value
        for name, value in p.items()
    }
    for clean, ours in zip(gradient(p), gradient(dirty), strict=True):
        assert torch.equal(clean, ours)
    assert not gradient(dirty)[1][~p["action"]].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(0, 4), st.integers(0, 4), st.permutations(range(4)))
def test_padding_order_and_micro_batches_change_nothing(seed, padding, cut, order):
    p = problem(seed)
    total, by_logp, by_sft = gradient(p)

    padded = {name: torch.nn.functional.pad(value, (0, padding)) if value.shape[1] > 1 else value
              for name, value in p.items()}
    torch.testing.assert_close(gradient(padded)[0], total, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(padded)[1][:, :6], by_logp, atol=1e-12, rtol=0)

    turned = gradient({name: value[list(order)] for name, value in p.items()})
    torch.testing.assert_close(turned[0], total, atol=1e-12, rtol=0)
    torch.testing.assert_close(turned[2], by_sft[list(order)], atol=1e-12, rtol=0)

    parts = loss(p, slice(0, cut)).total + loss(p, slice(cut, None)).total
    torch.testing.assert_close(parts, total, atol=1e-12, rtol=0)


def test_gradcheck():
    p = problem()
    logp, sft_logp = p["logp"].requires_grad_(), p["sft_logp"].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(p | {"logp": a, "sft_logp": b}).total, (logp, sft_logp))


@pytest.mark.parametrize("why", ["no text tokens", "text weight 0"])
def test_defect_05_nothing_selected_trains_nothing(why):
    p = problem()
    coefficient = torch.zeros(4, 6)
    if why == "text weight 0":
        text = scope_mask(p["text"], p["action"], "text")
        coefficient = coefficients(p["text"], text, text, (0.0, 1.0))
    p["logp"].requires_grad_()
    result = loss(p, coefficient=coefficient, lam=1.0, beta_text=0.0, beta_speech=0.0)
    result.total.backward()
    assert result.total.item() == 0 and result.components["policy_gradient"].tokens == 0
    assert p["logp"].grad is not None and not p["logp"].grad.any()  # zero, not missing


def test_defect_06_a_modalitys_weight_reaches_the_loss():
    p = problem()
    sft = masks(p)["sft_coefficient"]
    values = [
        loss(p, sft_coefficient=coefficients(p["text"], sft, sft, (w, w))).components["sft"].value for w in (1.0, 2.0)
    ]
    torch.testing.assert_close(values[1], 2 * values[0])


def test_defect_07_a_kl_with_a_weight_contributes_or_stops():
    p = problem()
    with_kl, without = gradient(p), gradient(p, beta_text=0.0, beta_speech=0.0)
    assert not torch.equal(with_kl[0], without[0]) and not torch.equal(with_kl[1], without[1])
    components = loss(p).components
    expected = BETA_TEXT * components["kl_text"].value + BETA_SPEECH * components["kl_speech"].value
    torch.testing.assert_close(with_kl[0] - without[0], expected)
    with pytest.raises(ValueError, match="kl_text has weight"):
        loss(p, ref_logp=None)
    with pytest.raises(ValueError, match="kl_speech has weight"):
        loss(p, kl_speech_coefficient=None)
    assert set(loss(p, ref_logp=None, beta_text=0.0, beta_speech=0.0).components) == {"sft", "policy_gradient"}


def test_the_ends_of_lambda_are_pure():
    p = problem()
    off = {"beta_text": 0.0, "beta_speech": 0.0}
    assert not gradient(p, lam=0.0, **off)[1].any()
    assert not gradient(p, lam=1.0, **off)[2].any()
