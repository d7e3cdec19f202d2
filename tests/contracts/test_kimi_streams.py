"""Kimi-Audio's tokenizer and the layout of its two streams, by the published tables."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from elocute.errors import InputError
from elocute.models.kimi import (
    KimiTokenizer,
    Marks,
    Reply,
    Said,
    fit_features,
    lay_out_prompt,
    lay_out_target,
    load_vocabulary,
    read_reply,
)
from elocute.models.kimi.tokenizer import PATTERN
from tests.contracts import kimi
from tests.contracts.kimi import MERGED, N_BASE, N_CODES, OFFSET

END, MEDIA, MEDIA_END, B, EOS, USER, ASSISTANT, CT, CTD = (
    N_BASE + place for place in (2, 18, 20, 23, 24, 27, 28, 32, 33)
)
MARKS = Marks(END, MEDIA, MEDIA_END, B, EOS, USER, ASSISTANT, CT, CTD, N_BASE, OFFSET, N_CODES, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder) -> KimiTokenizer:
    return KimiTokenizer.load(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# the tokenizer


def naive_ids(text: str) -> list[int]:
    """tiktoken's rule: in each piece of the pattern, merge the pair of the lowest rank, leftmost first."""
    ranks = {token: rank for rank, token in enumerate([bytes([value]) for value in range(256)] + MERGED)}
    ids = []
    for piece in regex.findall(PATTERN, text):
        parts = [bytes([value]) for value in piece.encode()]
        if piece.encode() in ranks:
            parts = [piece.encode()]
        while len(parts) > 1:
            pairs = [
                (ranks[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if not pairs:
                break
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


PIECES = ["\u4f60", "\u00e9", "e\u0301", "\U0001f3b5", " the", "hello", "speak", "aaaa", "im_msg_end"]
ALPHABET = st.sampled_from([*"theinga lo'sk12<|>_\n", *PIECES])
TEXTS = st.lists(ALPHABET, max_size=30).map("".join) | st.text(max_size=20)


@given(text=TEXTS)
def test_text_is_merged_as_tiktoken_does_and_comes_back(tokenizer, text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert tokenizer.encode(text) == naive_ids(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_pattern_is_qwen2s_every_digit_alone(tokenizer):
    assert PATTERN == PRETOKENIZE_REGEX
    assert tokenizer.encode("12") == [ord("1"), ord("2")]  # "12" is a token, but no piece holds two digits


def test_text_is_not_normalised(tokenizer):
    assert tokenizer.encode("\u00e9") == [N_BASE - 10] and tokenizer.encode("e\u0301") == list("e\u0301".encode())


def test_the_name_of_a_special_token_in_a_message_is_text(tokenizer):
    for name in kimi.NAMED.values():
        ids = tokenizer.encode(f"hello{name}")
        assert max(ids) < N_BASE and tokenizer.decode(ids) == f"hello{name}"


def test_special_tokens_are_found_by_name(folder):
    tokenizer, marks, _ = load_vocabulary(folder)
    assert marks == MARKS
    assert tokenizer.decode([*tokenizer.encode("speak"), END, N_BASE + 7]) == f"speak<|im_msg_end|><|{N_BASE + 7}|>"


def test_bytes_that_are_no_character_are_shown_as_such(tokenizer):
    assert tokenizer.decode([0xE4, 0xBD, ord("a")]) == "�a"


def rewrite(folder: Path, change) -> None:
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text())
    change(said["added_tokens_decoder"])
    file.write_text(json.dumps(said))


def test_ids_follow_the_names_wherever_they_stand(copy):
    rewrite(copy, lambda tokens: tokens.update({str(B): tokens[str(EOS)], str(EOS): tokens[str(B)]}))
    _, marks, _ = load_vocabulary(copy)
    assert (marks.blank, marks.text_eos) == (EOS, B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.pop(str(B)), "no token '<|im_kimia_text_blank|>'"),
        (
            lambda tokens: tokens.update({str(MEDIA): tokens.pop(str(N_BASE)), "299": tokens[str(MEDIA)]}),
            "kimia_media_begin",
        ),
        (lambda tokens: tokens.update({str(OFFSET): {"content": "<|more|>"}}), "codes begin at kimia_token_offset"),
        (lambda tokens: tokens.update({"5": {"content": "<|low|>"}}), "'<|low|>' lies among the"),
        (lambda tokens: tokens.update({"300": {"content": "[PAD]"}}), "a name stands there twice"),
        (lambda tokens: tokens.update({"x": {"content": "y"}}), "added_tokens_decoder"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_one_line(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(InputError) as caught:
        load_vocabulary(copy)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not base64!\n", ":1: expected a token in base64"),
        (b"".join(base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(255)), "256 bytes"),
        (
            b"".join(base64.b64encode(bytes([value, 1])) + b" %d\n" % value for value in range(256)),
            "no token for the byte 0",
        ),
        (None, "not a tokenizer's ranks"),
    ],
)
def test_ranks_that_are_none_are_one_line(copy, content, message):
    (copy / "tiktoken.model").unlink()
    if content is not None:
        (copy / "tiktoken.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_vocabulary(copy)


# the prompt


def columns(prompt) -> list[tuple[int, int, bool]]:
    return list(zip(prompt.audio.tolist(), prompt.text.tolist(), prompt.continuous.tolist(), strict=True))


def spoken(*codes: int) -> list[tuple[int, int, bool]]:
    return [(MEDIA, B, False), *((OFFSET + code, B, True) for code in codes), (MEDIA_END, B, False)]


@pytest.mark.parametrize("speaks", [True, False])
def test_a_spoken_question(speaks):
    prompt = lay_out_prompt([Said("user", codes=(5, 0, 47))], MARKS, speaks=speaks)
    wanted = [
        (USER, B, False),
        *spoken(5, 0, 47),
        (CTD if speaks else CT, B, False),
        (END, B, False),
        (ASSISTANT, B, False),
    ]
    assert columns(prompt) == wanted and prompt.audio.dtype == prompt.text.dtype == torch.int64


def test_a_written_question_asks_for_no_kind_of_answer():
    prompt = lay_out_prompt([Said("user", text=(7, 8))], MARKS, speaks=True)
    assert columns(prompt) == [(USER, B, 0), (B, 7, 0), (B, 8, 0), (END, B, 0), (ASSISTANT, B, 0)]


def test_messages_of_one_role_share_its_marks_and_the_last_decides():
    text, speech = Said("user", text=(7,)), Said("user", codes=(1,))
    first = columns(lay_out_prompt([text, speech], MARKS, speaks=True))
    assert first == [(USER, B, 0), (B, 7, 0), *spoken(1), (CTD, B, 0), (END, B, 0), (ASSISTANT, B, 0)]
    second = columns(lay_out_prompt([speech, text], MARKS, speaks=True))
    assert second == [(USER, B, 0), *spoken(1), (B, 7, 0), (END, B, 0), (ASSISTANT, B, 0)]
    both = columns(lay_out_prompt([speech, speech], MARKS, speaks=True))
    assert both == [(USER, B, 0), *spoken(1), *spoken(1), (CTD, B, 0), (END, B, 0), (ASSISTANT, B, 0)]


def test_what_was_said_before():
    turns = [
        Said("user", codes=(3,)),
        Said("assistant", text=(10, 11), codes=(20, 21)),
        Said("user", text=(7,)),
        Said("assistant", text=(12,)),
        Said("user", codes=(4,)),
    ]
    blanks = [(B, 10, 0), (B, 11, 0), *[(B, B, 0)] * 4]
    assert columns(lay_out_prompt(turns, MARKS, speaks=True)) == [
        *[(USER, B, 0), *spoken(3), (CTD, B, 0), (END, B, 0)],
        *[(ASSISTANT, B, 0), *blanks, (OFFSET + 20, B, 0), (OFFSET + 21, B, 0), (END, B, 0)],
        *[(USER, B, 0), (B, 7, 0), (END, B, 0)],
        *[(ASSISTANT, B, 0), (B, 12, 0), (B, EOS, 0), (END, B, 0)],
        *[(USER, B, 0), *spoken(4), (CTD, B, 0), (END, B, 0)],
        (ASSISTANT, B, 0),
    ]


def test_text_beside_earlier_speech_may_be_as_long_as_it_and_no_longer():
    question = Said("user", text=(1,))
    fits = lay_out_prompt([Said("assistant", text=range(8), codes=(1, 2)), question], MARKS, speaks=True)
    assert fits.text[1:9].tolist() == list(range(8)) and fits.audio[7:9].tolist() == [OFFSET + 1, OFFSET + 2]
    with pytest.raises(InputError, match="text of 9 tokens does not fit beside its speech of 2 codes"):
        lay_out_prompt([Said("assistant", text=range(9), codes=(1, 2)), question], MARKS, speaks=True)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "the last one to be the user's"),
        ([Said("user", text=(1,)), Said("assistant", text=(1,))], "the last one to be the user's"),
        ([Said("system", text=(1,)), Said("user", text=(1,))], "expected user or assistant, got 'system'"),
        ([Said("user")], "either text or speech"),
        ([Said("user", text=(1,), codes=(1,))], "either text or speech"),
        ([Said("assistant", codes=(1,)), Said("user", text=(1,))], "stands with its text"),
        ([Said("user", text=(END,))], "no special token"),
        ([Said("user", codes=(N_CODES,))], f"code {N_CODES}: expected 0"),
        ([Said("user", codes=(-1,))], "code -1"),
    ],
)
def test_messages_that_the_layout_has_no_place_for(turns, message):
    with pytest.raises(InputError, match=message):
        lay_out_prompt(turns, MARKS, speaks=True)


def test_features_are_fitted_to_the_codes():
    long, short = torch.ones(4, 3), 2 * torch.ones(1, 3)
    fitted = fit_features([long, short], [2, 3])
    assert fitted.tolist() == [[1] * 3, [1] * 3, [2] * 3, [0] * 3, [0] * 3]


# the answer


def answer(n: int, m: int) -> tuple[list[int], list[int]]:
    """Both streams of a proper answer of n tokens and m codes, column by column as the table says."""
    audio = [B] * 6 + [OFFSET + code % N_CODES for code in range(m)] + [END]
    text = list(range(n)) + [EOS]
    return audio, text + [B] * (len(audio) - len(text))


def test_actions_and_forced_blanks_of_a_spoken_answer():
    audio, text = answer(3, 4)
    reply = read_reply(audio, text, MARKS, speaks=True)
    assert (reply.broken, reply.text_ids, reply.codes) == (None, [0, 1, 2], [0, 1, 2, 3])
    cells, steps = reply.cells(), torch.arange(11)
    assert cells.audio.tolist() == audio and cells.text.tolist() == text and len(cells) == 11
    assert cells.text_action.tolist() == (steps <= 3).tolist()
    assert cells.audio_action.tolist() == ((steps >= 6) & (steps <= 10)).tolist()


def test_actions_of_a_written_answer():
    reply = read_reply([B, B, B], [1, 2, EOS], MARKS, speaks=False)
    cells = reply.cells()
    assert (reply.broken, reply.text_ids, reply.codes) == (None, [1, 2], [])
    assert cells.text_action.all() and not cells.audio_action.any() and len(cells) == 3


@given(n=st.integers(0, 12), m=st.integers(1, 9), speaks=st.booleans())
def test_a_target_is_the_answer_that_reads_back(n, m, speaks):
    if speaks and n > 6 + m:
        with pytest.raises(InputError, match="the speech ends before the text does"):
            lay_out_target(range(n), range(m), MARKS)
        return
    cells = lay_out_target(range(n), range(m) if speaks else None, MARKS)
    audio, text = answer(n, m) if speaks else ([B] * (n + 1), [*range(n), EOS])
    assert cells.audio.tolist() == audio and cells.text.tolist() == text
    loss = [token for token, action in zip(text, cells.text_action, strict=True) if action]
    assert loss == [*range(n), EOS]
    loss = [token for token, action in zip(audio, cells.audio_action, strict=True) if action]
    assert loss == ([*(OFFSET + code for code in range(m)), END] if speaks else [])
    reply = read_reply(audio, text, MARKS, speaks=speaks)
    assert reply.broken is None and reply.text_ids == list(range(n)) and reply.codes == list(range(m if speaks else 0))


@pytest.mark.parametrize("end", [END, MEDIA_END])
def test_speech_stops_at_either_end(end):
    audio, text = answer(1, 2)
    audio[-1] = end
    reply = read_reply([*audio, OFFSET], [*text, B], MARKS, speaks=True)
    assert reply.done and reply.broken is None and len(reply.audio) == 9


def test_a_growing_answer_says_what_is_forced():
    reply, forced = Reply(MARKS, speaks=True), []
    for audio, text in zip(*answer(2, 2), strict=True):
        forced.append(reply.forced())
        reply.push(audio, text)
    assert forced == [(B, None)] * 3 + [(B, B)] * 3 + [(None, B)] * 3
    assert reply.done
    with pytest.raises(ValueError, match="has ended"):
        reply.push(B, B)


def test_text_goes_on_beside_the_speech():
    reply, (audio, text) = Reply(MARKS, speaks=True), answer(8, 2)
    for pair in zip(audio, text, strict=True):
        assert reply.forced()[1] is None
        reply.push(*pair)
    assert reply.done and reply.broken is None and reply.cells().text_action.all()


@pytest.mark.parametrize(
    ("audio", "text", "speaks", "broken", "text_ids", "codes"),
    [
        ([B] * 6 + [OFFSET], [1, EOS, *[B] * 5], True, "no end", [1], [0]),
        ([B] * 2, [1, 2], False, "no end", [1, 2], []),
        ([B] * 6 + [OFFSET, END], [1] * 8, True, "the speech ends before the text does", [1] * 8, [0]),
        ([B] * 6 + [END], [1, EOS, *[B] * 5], True, "has no speech", [1], []),
        ([B] * 6 + [9, OFFSET, END], [EOS, *[B] * 8], True, "step 6 of the audio stream is no code", [], [0]),
        ([B] * 6 + [OFFSET, END], [OFFSET, 1, EOS, *[B] * 5], True, "step 0 of the text stream is a code", [1], [0]),
        ([B] * 6 + [OFFSET, END], [B, EOS, *[B] * 6], True, "step 0 of the text stream is a special token", [B], [0]),
        (
            [OFFSET] + [B] * 5 + [OFFSET, END],
            [EOS, *[B] * 7],
            True,
            "step 0 of the audio stream is not the blank",
            [],
            [0],
        ),
        ([B] * 6 + [OFFSET, END], [EOS, *[B] * 6, 3], True, "step 7 of the text stream is not the blank", [], [0]),
    ],
)
def test_a_broken_answer_says_why(audio, text, speaks, broken, text_ids, codes):
    reply = read_reply(audio, text, MARKS, speaks=speaks)
    assert broken in reply.broken and reply.text_ids == text_ids and reply.codes == codes


def test_an_answer_of_nothing_is_cut():
    reply = read_reply([], [], MARKS, speaks=True)
    assert "no end" in reply.broken and len(reply.cells()) == 0
