"""The speech decoder: one pass, step by step, and a naive float64 twin; who sees whom; what is drawn."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from elocute.models.minicpm_o import ChatTTSConfig, ConditionalChatTTS, MiniCPMO, SpeechCache
from elocute.models.minicpm_o.sampling import SpeechSampling, behaviour_logits, code_logprobs, speak
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


# ---- sampling ------------------------------------------------------------------------------------------------------


def naive_distribution(logits: np.ndarray, frame: int, tau: float) -> np.ndarray:
    """Of one codebook [626]: temperature; top-p 0.7 then top-k 20, each keeping three at least; the end's ban."""
    scores = logits.astype(np.float64) / tau
    if frame > 0:
        order = np.argsort(-scores, kind="stable")
        p = np.exp(scores[order] - scores.max())
        p /= p.sum()
        kept = [code for n, code in enumerate(order) if n < 3 or p[:n].sum() < 0.7][:20]
        scores = np.where(np.isin(np.arange(626), kept), scores, -np.inf)
    if frame % 25 < 10:
        scores[625] = -np.inf
    p = np.exp(scores - scores.max())
    return p / p.sum()


@pytest.mark.parametrize("spread", [0.05, 0.3, 2.0])
def test_the_rules_are_the_naive_rules(spread):
    draw = np.random.default_rng(0)
    frames = [0, 1, 9, 10, 24, 25, 34, 35]
    logits = draw.normal(size=(2, len(frames), 4, 626)) * spread
    logits[..., 625] += 3 * spread
    warped = behaviour_logits(torch.from_numpy(logits).float(), torch.tensor(frames), SpeechSampling())
    given = warped.softmax(-1).numpy()
    for row in range(2):
        for place, frame in enumerate(frames):
            for q, tau in enumerate([0.1, 0.3, 0.1, 0.3]):
                expected = naive_distribution(logits[row, place, q], frame, tau)
                assert np.abs(given[row, place, q] - expected).max() < 1e-5


def test_the_end_is_banned_in_the_first_ten_frames_of_every_25():
    logits = torch.zeros(1, 100, 4, 626)
    logits[..., 625] = 1
    can_end = behaviour_logits(logits, torch.arange(100), SpeechSampling())[0, ..., 625].isfinite()
    assert [bool(row.all()) for row in can_end] == [frame % 25 >= 10 for frame in range(100)]
    assert (can_end.all(1) == can_end.any(1)).all()
    free = behaviour_logits(logits, torch.arange(100), SpeechSampling(no_end=0))
    assert free[..., 625].isfinite().all()


def test_the_very_first_frame_is_drawn_from_all_codes_and_the_26th_is_not():
    logits = torch.randn(1, 26, 4, 626, generator=torch.Generator().manual_seed(0))
    kept = behaviour_logits(logits, torch.arange(26), SpeechSampling())[0].isfinite().sum(-1)
    assert kept[0].tolist() == [625] * 4 and kept[25].max() <= 20 and kept[1:].min() >= 2


def test_plain_sampling_is_the_decoders_own_distribution():
    logits = torch.randn(2, 30, 4, 626)
    assert torch.equal(behaviour_logits(logits, torch.arange(30), SpeechSampling.plain()), logits)


def test_sampling_defaults_come_from_tts_config():
    chosen = SpeechSampling.published(ChatTTSConfig(llm_dim=48, top_k=7, top_p=0.5))
    assert (chosen.top_k, chosen.top_p, chosen.temperatures) == (7, 0.5, (0.1, 0.3, 0.1, 0.3))
    with pytest.raises(Exception, match="repetition_penalty: expected 1.0, got 1.2"):
        SpeechSampling.published(ChatTTSConfig(llm_dim=48, repetition_penalty=1.2))


@pytest.fixture(scope="module")
def eager_to_end(folder) -> ConditionalChatTTS:
    """A decoder that ends often: the end's row of every head is longer."""
    tts = MiniCPMO.load(folder, ["tts"]).tts
    with torch.no_grad():
        for head in tts.head_code:
            head.parametrizations.weight.original0[625] *= 2.5
    return tts


@pytest.mark.parametrize(
    "sampling", [SpeechSampling(max_frames=90), SpeechSampling.plain(max_frames=90)], ids=["published", "plain"]
)
def test_what_is_scored_is_what_was_drawn(eager_to_end, sampling):
    text, length, speaker, _ = case([13, 77, 302, 20, 21, 22], frames=1, seed=4)
    drawn = speak(eager_to_end, text, length, speaker, sampling, torch.Generator().manual_seed(0))
    frames = torch.arange(drawn.codes.shape[1])
    logits = eager_to_end.logits(eager_to_end(text, length, speaker, drawn.codes))
    scored = code_logprobs(behaviour_logits(logits, frames, sampling), drawn.codes)
    there = frames < drawn.frames[:, None]
    assert (scored - drawn.logprobs)[there].abs().max() < 1e-4
    assert drawn.logprobs[there].isfinite().all() and (drawn.logprobs[~there] == 0).all()
    assert (drawn.codes[~there] == 0).all() and drawn.ended.any()
    last = drawn.codes[torch.arange(6), drawn.frames - 1]
    assert torch.equal((last == 625).any(-1), drawn.ended)
    ends = (drawn.codes == 625).any(-1) & there
    assert torch.equal(ends.sum(1), drawn.ended.long())  # the end is one frame, the last
    assert (drawn.frames[~drawn.ended] == 90).all()


def test_the_end_in_any_codebook_ends(eager_to_end):
    text, length, speaker, _ = case([20] * 12, frames=1, seed=5)
    drawn = speak(
        eager_to_end, text, length, speaker, SpeechSampling.plain(max_frames=80), torch.Generator().manual_seed(1)
    )
    last = drawn.codes[drawn.ended.nonzero()[:, 0], drawn.frames[drawn.ended] - 1]
    assert len(last) > 3 and ((last == 625).sum(-1) < 4).all()


def test_a_seed_gives_the_same_speech(tts):
    text, length, speaker, _ = case([13, 30], frames=1)
    one, same, other = (
        speak(tts, text, length, speaker, SpeechSampling(max_frames=20), torch.Generator().manual_seed(seed)).codes
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_only_selected_frames_move_the_decoder_and_the_voice_is_reached(folder):
    tts = MiniCPMO.load(folder, ["tts"]).tts
    text, length, speaker, codes = case([20, 20], frames=12)
    speaker.requires_grad_()
    logprobs = code_logprobs(tts.logits(tts(text, length, speaker, codes)), codes)
    logprobs[0, :5, 1].sum().backward()
    assert tts.head_code[1].parametrizations.weight.original0.grad.abs().sum() > 0
    assert tts.head_code[0].parametrizations.weight.original0.grad.abs().sum() == 0
    assert speaker.grad[0].abs().sum() > 0 and speaker.grad[1].abs().sum() == 0
    moved = tts.emb_code[0].weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert set(moved) == set(codes[0, :4, 0].tolist())  # frame 4's codes are not yet seen by frame 4
