import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.tokens import modality_weights, scope_mask, token_coefficients

masks = (
    st.tuples(st.integers(1, 5), st.integers(1, 7))
    .flatmap(
        lambda shape: st.lists(
            st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )
    .map(lambda rows: torch.tensor(rows, dtype=torch.bool))
)
normalisers = st.sampled_from(["sequence", "token", "group"])


def coefficients(selected, normaliser, rows=None, tokens=None):
    rows = len(selected) if rows is None else rows
    tokens = int(selected.sum()) if tokens is None else tokens
    return token_coefficients(selected, normaliser=normaliser, rows_total=rows, tokens_total=tokens)


@given(selected=masks, normaliser=normalisers)
def test_coefficients_equal_the_definitions(selected, normaliser):
    ours = coefficients(selected, normaliser)
    losses = torch.randn(selected.shape, dtype=torch.float64)
    rows = [losses[i][selected[i]] for i in range(len(selected))]
    expected = {
        "sequence": sum(row.mean() for row in rows if len(row)) / len(rows),
        "token": sum(row.sum() for row in rows) / max(1, int(selected.sum())),
        "group": sum(row.sum() for row in rows) / len(rows),
    }[normaliser]
    assert ours.dtype == torch.float32 and ours.shape == selected.shape
    assert not ours[~selected].any()
    torch.testing.assert_close((ours.double() * losses).sum(), torch.as_tensor(expected).double(), atol=1e-6, rtol=1e-5)


@given(selected=masks, normaliser=normalisers, padding=st.integers(0, 4), data=st.data())
def test_padding_order_and_micro_batches_change_nothing(selected, normaliser, padding, data):
    whole = coefficients(selected, normaliser)
    padded = torch.nn.functional.pad(selected, (0, padding), value=False)
    assert torch.equal(coefficients(padded, normaliser)[:, : selected.shape[1]], whole)
    order = torch.tensor(data.draw(st.permutations(range(len(selected)))))
    assert torch.equal(coefficients(selected[order], normaliser), whole[order])
    cut = data.draw(st.integers(0, len(selected)))
    totals = {"rows": len(selected), "tokens": int(selected.sum())}
    parts = [coefficients(part, normaliser, **totals) for part in (selected[:cut], selected[cut:])]
    assert torch.equal(torch.cat(parts), whole)


def test_scopes():
    text = torch.tensor([[True, True, False, False]])
    action = torch.tensor([[True, False, True, False]])
    assert scope_mask(text, action).tolist() == [[True, False, True, False]]
    assert scope_mask(text, action, "text").tolist() == [[True, False, False, False]]
    assert scope_mask(text, action, "speech").tolist() == [[False, False, True, False]]
    with pytest.raises(ValueError, match="audio"):
        scope_mask(text, action, "audio")


def test_weights():
    weights = modality_weights(torch.tensor([[True, False]]), 1, 0.25)
    assert weights.dtype == torch.float32 and weights.tolist() == [[1.0, 0.25]]


def test_totals_smaller_than_what_is_selected_are_errors():
    selected = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="total of 5"):
        token_coefficients(selected, normaliser="token", rows_total=2, tokens_total=5)
    with pytest.raises(ValueError, match="total of 1"):
        token_coefficients(selected, normaliser="sequence", rows_total=1, tokens_total=6)
    with pytest.raises(ValueError, match="batch"):
        token_coefficients(selected, normaliser="batch", rows_total=2, tokens_total=6)


@pytest.mark.parametrize("normaliser", ["sequence", "token", "group"])
def test_defect_05_a_group_without_text_tokens_trains_nothing(normaliser):
    text = torch.zeros(4, 5, dtype=torch.bool)  # speech only
    selected = scope_mask(text, torch.ones_like(text), "text")
    ours = coefficients(selected, normaliser)
    assert not ours.any()
    assert int((ours != 0).any(1).logical_not().sum()) == 4  # and the empty rows can be counted


@pytest.mark.parametrize("normaliser", ["sequence", "token", "group"])
def test_defect_06_weights_do_not_cancel_in_their_normaliser(normaliser):
    text = torch.tensor([[True, True, False, False, False]])
    action = torch.ones_like(text)
    for scope in ("all", "text", "speech"):
        base = coefficients(scope_mask(text, action, scope), normaliser)
        once, thrice = (base * modality_weights(text, w, w) for w in (1.0, 3.0))
        torch.testing.assert_close(thrice.sum(), 3 * once.sum())
    lighter = coefficients(action, normaliser) * modality_weights(text, 1.0, 0.1)
    full = coefficients(action, normaliser)
    assert torch.equal(lighter[text], full[text])  # speech's weight leaves text's share alone
    torch.testing.assert_close(lighter[~text], 0.1 * full[~text])
