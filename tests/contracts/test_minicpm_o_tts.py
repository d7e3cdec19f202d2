"""The speech decoder: one pass, step by step, and a naive float64 twin; who sees whom."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from elocute.models.minicpm_o import ChatTTSConfig, ConditionalChatTTS, MiniCPMO, SpeechCache
from elocute.models.minicpm_o.tts import text_due, visible
from tests.contracts import minicpm_o

SLOTS = 302


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def tts(folder) -> ConditionalChatTTS:
    return MiniCPMO.load(folder, ["tts"]).tts


def case(lengths: list[int], frames: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """text [B, 302] with noise behind each row's length, lengths [B], speaker [B, 48], codes [B, T, 4]."""
    draw = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    text = torch.randint(9, 60, (rows, SLOTS), generator=draw)
    text[:, 0], text[:, 1] = 5, 8
    speaker = torch.randn(rows, 48, generator=draw)
    return text, torch.tensor(lengths), speaker, torch.randint(0, 625, (rows, frames, 4), generator=draw)


# ---- a naive twin --------------------------------------------------------------------------------------------------


def sees(p: int, k: int, words: int) -> bool:
    """Does position p see k, in an utterance of so many words (text tokens, of 300 at most)?"""
    if p < 302:
        return k <= p
    if k >= 303:
        return k <= p
    has_end = words < 300
    valid = set(range(words + 3)) if has_end else set(range(302))
    return k < min(10 * math.ceil((p - 300) / 50), 300) + 2 and k in valid and k != 302


def naive_states(state: dict, text, words: int, speaker, codes, layers: int = 2, heads: int = 4) -> np.ndarray:
    """States [T, D] of one utterance, float64: [302 text ids, BOS, codes but the last], all slots computed."""
    w = {name.removeprefix("tts."): tensor.double().numpy() for name, tensor in state.items()}
    hidden = np.maximum(w["projector.linear1.weight"] @ speaker + w["projector.linear1.bias"], 0)
    voice = w["projector.linear2.weight"] @ hidden + w["projector.linear2.bias"]
    rows = [w["emb_text.weight"][i] for i in text] + [w["emb_text.weight"][minicpm_o.MARKS.index("[Ptts]")]]
    rows[1] = voice / math.sqrt((voice**2).sum())
    rows += [sum(w[f"emb_code.{q}.weight"][code] for q, code in enumerate(frame)) for frame in codes[:-1]]
    x = np.stack(rows)
    count, width = x.shape
    half = width // heads // 2
    angle = np.arange(count)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    mask = np.array([[sees(p, k, words) for k in range(count)] for p in range(count)])

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[name]

    def turned(x):
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    for layer in range(layers):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (y @ w[f"{at}.self_attn.{part}_proj.weight"].T for part in "qkv")
        mixed = []
        for head in range(heads):
            mine = slice(head * 2 * half, (head + 1) * 2 * half)
            scores = np.where(mask, turned(q[:, mine]) @ turned(k[:, mine]).T / math.sqrt(2 * half), -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weight / weight.sum(-1, keepdims=True) @ v[:, mine])
        x = x + np.concatenate(mixed, -1) @ w[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate, up = (y @ w[f"{at}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight")[302:]


def naive_logits(state: dict, states: np.ndarray) -> np.ndarray:
    heads = []
    for q in range(4):
        g, v = (state[f"tts.head_code.{q}.parametrizations.weight.original{i}"].double().numpy() for i in range(2))
        heads.append(states @ (g * v / np.sqrt((v**2).sum(1, keepdims=True))).T)
    return np.stack(heads, 1)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return minicpm_o.weights(minicpm_o.config(), 0, minicpm_o.DVAE)


@pytest.mark.parametrize("words", [0, 25, 299, 300])
def test_one_pass_is_the_naive_float64_decoder(tts, state, words):
    text, length, speaker, codes = case([min(words + 3, SLOTS)], frames=60)
    states = tts(text, length, speaker, codes)
    expected = naive_states(state, text[0].tolist(), words, speaker[0].double().numpy(), codes[0].tolist())
    assert states.shape == (1, 60, 32) and np.abs(states[0].detach().numpy() - expected).max() < 2e-5
    logits = tts.logits(states)[0].detach().numpy()
    assert logits.shape == (60, 4, 626) and np.abs(logits - naive_logits(state, expected)).max() < 1e-4


# ---- step by step --------------------------------------------------------------------------------------------------


def stepped(tts, text, length, speaker, codes, streamed: bool) -> torch.Tensor:
    """Frame after frame; streamed: ten slots of the text before every 25 frames, as the original reads them."""
    slots = SLOTS if streamed else int(length.max())
    cache, states = SpeechCache(slots), []
    valid = torch.arange(SLOTS) < length[:, None]
    if not streamed:
        tts.read_text(cache, text[:, :slots], valid[:, :slots], speaker)
    for frame in range(codes.shape[1]):
        if streamed and frame % 25 == 0 and cache.text_read < SLOTS:
            start = cache.text_read
            stop = start + 10 if start else 12
            tts.read_text(cache, text[:, start:stop], valid[:, start:stop], speaker)
        states.append(tts.read_frame(cache, codes[:, frame - 1] if frame else None))
    return torch.stack(states, 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_step_by_step_equals_one_pass(tts, streamed):
    given = case([13, 77, 302], frames=105, seed=1)
    assert (stepped(tts, *given, streamed) - tts(*given)).abs().max() < 1e-5


def test_text_that_comes_too_late_is_an_error(tts):
    text, length, speaker, codes = case([40], frames=60)
    cache = SpeechCache(40)
    tts.read_text(cache, text[:, :12], torch.ones(1, 12, dtype=torch.bool), speaker)
    tts.read_frame(cache, None)
    for frame in range(48):  # positions 303 … 350 see ten words
        tts.read_frame(cache, codes[:, frame])
    with pytest.raises(ValueError, match="frame 49 needs more than 12 slots of the text"):
        tts.read_frame(cache, codes[:, 48])


def test_a_short_text_need_not_fill_what_is_due(tts):
    given = case([6], frames=60)
    assert (stepped(tts, *given, False) - tts(*given)).abs().max() < 1e-5


def test_batch_equals_single_and_what_is_behind_the_end_changes_nothing(tts):
    text, length, speaker, codes = case([13, 77, 302], frames=80, seed=2)
    together = tts(text, length, speaker, codes)
    for row, frames in enumerate([80, 33, 64]):
        one = tts(text[row, None], length[row, None], speaker[row, None], codes[row, None, :frames])
        assert (together[row, :frames] - one[0]).abs().max() < 1e-5
        other = codes.clone()
        other[row, frames:] = 625
        noise = text.clone()
        noise[row, length[row] :] = 3
        assert (tts(noise, length, speaker, other)[row, :frames] - one[0]).abs().max() < 1e-5


def test_the_last_frame_is_predicted_and_not_read(tts):
    text, length, speaker, codes = case([20], frames=9)
    other = codes.clone()
    other[:, -1] = 625
    assert torch.equal(tts(text, length, speaker, codes), tts(text, length, speaker, other))
    other[:, -2] = 625
    assert not torch.equal(tts(text, length, speaker, codes)[:, -1], tts(text, length, speaker, other)[:, -1])
    assert tts(text, length, speaker, codes[:, :0]).shape == (1, 0, 32)


# ---- who sees whom, by name ----------------------------------------------------------------------------------------

SIZES = ChatTTSConfig(llm_dim=48)


def seen(position: int, length: int = SLOTS) -> set[int]:
    keys = torch.arange(position + 5)
    return set(
        visible(torch.tensor([position]), keys, keys[None] < max(length, 303), SIZES)[0, 0, 0].nonzero()[:, 0].tolist()
    )


def test_position_302_is_seen_by_nobody_not_even_itself():
    assert 302 not in seen(302) and 302 not in seen(303) and 302 not in seen(900)
    assert 302 not in seen(301)


@pytest.mark.parametrize("position, words", [(302, 10), (350, 10), (351, 20), (400, 20), (401, 30), (1801, 300)])
def test_the_window_of_text_grows_at_302_351_401(position, words):
    assert seen(position) == set(range(words + 2)) | set(range(303, position + 1))
    assert text_due(position, SIZES) == words + 2 == int(text_due(torch.tensor(position), SIZES))


def test_the_window_never_reaches_beyond_the_texts_slots():
    assert text_due(5000, SIZES) == 302


def test_padding_of_the_text_is_not_seen_by_audio():
    keys = torch.arange(500)
    valid = (keys < 9)[None] | (keys > 302)[None]
    rows = visible(torch.tensor([302, 499]), keys, valid, SIZES)[0, 0]
    assert rows[0].nonzero()[:, 0].tolist() == list(range(9))
    assert rows[1].nonzero()[:, 0].tolist() == [*range(9), *range(303, 500)]


def test_chunk_of_50_frames_is_fixed_whatever_the_config_says(tmp_path):
    """Trap: tts_config has streaming_audio_chunk_size, and the original's mask does not read it."""
    changes = {"tts_config": {"streaming_audio_chunk_size": 25}}
    folder = minicpm_o.checkpoint(tmp_path, dtype=torch.float32, **changes)
    given = case([60], frames=60)
    plain = minicpm_o.checkpoint(tmp_path / "plain", dtype=torch.float32)
    one, other = (MiniCPMO.load(path, ["tts"]).tts(*given) for path in (folder, plain))
    assert torch.equal(one, other)


def test_the_voice_has_length_one_and_stands_at_position_one(tts):
    text, _, speaker, _ = case([20], frames=2)
    embedded = tts.embed_text(text, speaker * 50)
    assert torch.allclose(embedded[:, 1].norm(dim=-1), torch.ones(1))
    assert torch.equal(embedded[:, 2:], tts.emb_text(text)[:, 2:])


def test_heads_are_weight_normed_row_by_row(tts):
    g = tts.head_code[0].parametrizations.weight.original0[:, 0]
    assert torch.allclose(tts.head_code[0].weight.norm(dim=1), g.abs(), atol=1e-5)


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_only_selected_frames_move_the_decoder_and_the_voice_is_reached(folder):
    tts = MiniCPMO.load(folder, ["tts"]).tts
    text, length, speaker, codes = case([20, 20], frames=12)
    speaker.requires_grad_()
    logprobs = tts.logits(tts(text, length, speaker, codes)).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    logprobs[0, :5, 1].sum().backward()
    assert tts.head_code[1].parametrizations.weight.original0.grad.abs().sum() > 0
    assert tts.head_code[0].parametrizations.weight.original0.grad.abs().sum() == 0
    assert speaker.grad[0].abs().sum() > 0 and speaker.grad[1].abs().sum() == 0
    moved = tts.emb_code[0].weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert set(moved) == set(codes[0, :4, 0].tolist())  # frame 4's codes are not yet seen by frame 4
