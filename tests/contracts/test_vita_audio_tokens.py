"""VITA-Audio's vocabulary, its prompts, and the order of text and speech in an answer."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from elocute.errors import InputError
from elocute.models.vita import interleave, load_tokens
from elocute.models.vita.interleave import read_answer
from elocute.models.vita.tokens import SYSTEM_PROMPTS
from tests.contracts import vita_audio

FEW = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Plus with all 16384 units."""
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus")


@pytest.fixture(scope="module")
def boost_folder(tmp_path_factory) -> Path:
    return vita_audio.boost(tmp_path_factory.mktemp("vita") / "boost", n_units=FEW)


@pytest.fixture(scope="module")
def plus_folder(tmp_path_factory) -> Path:
    return vita_audio.plus(tmp_path_factory.mktemp("vita") / "plus", n_units=FEW)


@pytest.fixture(scope="module")
def boost(boost_folder):
    return load_tokens(boost_folder)


@pytest.fixture(scope="module")
def plus(plus_folder):
    return load_tokens(plus_folder)


# the vocabulary

PUBLISHED = {"boost": (151674, 151675, 151684, 151685), "plus": (151674, 151675, 151685, 151686)}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_ids_follow_qwens_as_published(kind, request):
    """The published ones less the difference of the base vocabularies: 151665 ids there, 278 here."""
    tokens = request.getfixturevalue(kind)
    tag = tokens.tokenizer.convert_tokens_to_ids("<|audio|>")
    found = [id - 278 + 151665 for id in (tokens.begin, tokens.end, tag, tokens.first_unit)]
    assert tuple(found) == PUBLISHED[kind]
    assert (tokens.context is None) == (kind == "boost")
    if kind == "plus":
        assert tokens.context - 278 + 151665 == 151676


def test_all_units_and_padding_rows(whole):
    tokens = load_tokens(whole)
    assert (tokens.n_units, tokens.size) == (16384, tokens.first_unit + 16384)
    assert tokens.size - 278 + 151665 == 168070  # published: rows 168070 and 168071 are padding
    vocab = json.loads((whole / "config.json").read_text())["vocab_size"]
    assert 0 <= vocab - tokens.size < 8
    assert tokens.encode("<|audio_16383|>") == [tokens.size - 1]
    assert tokens.tokenizer.convert_tokens_to_ids("<|audio_16383|>") == tokens.size - 1


def test_units_stay_in_text_that_drops_special_tokens(plus):
    ids = [*plus.encode("hi"), plus.begin, plus.first_unit + 7, plus.end]
    assert plus.tokenizer.decode(ids, skip_special_tokens=True) == "hi<|audio_7|>"


def test_the_tokenizer_is_the_one_that_transformers_picks(plus, plus_folder):
    picked = AutoTokenizer.from_pretrained(plus_folder)
    text = "Hello, it's 1984! ÄÖÜ \n<|audio|> <|im_end|>\n<|audio_3|><|begin_of_audio|>"
    assert plus.encode(text) == picked.encode(text, add_special_tokens=False)


def test_every_token_stays_one_after_saving(plus, tmp_path):
    plus.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == plus.tokenizer.get_vocab()


# the prompt


def test_the_chat_template_has_no_default_system_message(boost):
    messages = [{"role": "system", "content": SYSTEM_PROMPTS["speech to speech"]}, {"role": "user", "content": "Hi"}]
    text = boost.tokenizer.decode(boost.encode_chat(messages, []))
    assert text == (
        "<|im_start|>system\nYour Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert boost.tokenizer.decode(boost.encode_chat(messages[1:], [])) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_heard_units_and_features_take_their_places(boost, plus):
    message = [{"role": "user", "content": "\n<|audio|>"}]
    ids = boost.encode_chat(message, [[5, 0, 39]]).tolist()
    units = [boost.first_unit + unit for unit in (5, 0, 39)]
    start = boost.encode("<|im_start|>user\n\n")
    assert ids == [*start, boost.begin, *units, boost.end, *boost.encode("<|im_end|>\n<|im_start|>assistant\n")]
    ids = plus.encode_chat(message, [21])
    assert int((ids == plus.context).sum()) == 21
    first = int((ids == plus.context).nonzero()[0])
    assert ids[first - 1] == plus.begin and ids[first + 21] == plus.end


def test_units_in_the_prompt_are_as_if_written(boost):
    """The original puts them into the text before it is tokenised."""
    written = "<|begin_of_audio|><|audio_5|><|audio_0|><|end_of_audio|>"
    ids = boost.encode_chat([{"role": "user", "content": "Say: <|audio|> again"}], [[5, 0]])
    text = f"<|im_start|>user\nSay: {written} again<|im_end|>\n<|im_start|>assistant\n"
    assert ids.tolist() == boost.encode(text)


def test_audios_stand_in_reading_order(boost):
    """The original gives a voice prompt of the system message to the user's place, and the other way round."""
    messages = [{"role": "system", "content": "Your Voice: <|audio|>\n"}, {"role": "user", "content": "<|audio|>"}]
    ids = boost.encode_chat(messages, [[1], [2]]).tolist()
    assert ids.index(boost.first_unit + 1) < ids.index(boost.first_unit + 2)


def test_prompts_that_do_not_fit_are_refused(boost, plus):
    message = [{"role": "user", "content": "<|audio|>"}]
    with pytest.raises(InputError, match=re.escape("1 places for audio, <|audio|>, for 0 audios")):
        boost.encode_chat(message, [])
    with pytest.raises(InputError, match="this model hears units"):
        boost.encode_chat(message, [21])
    with pytest.raises(InputError, match="expected units 0 … 39, got 40 … 40"):
        boost.encode_chat(message, [[40]])


# the answer's order

BEGIN, END = 900, 901


def content(text: int, audio: int) -> list[int]:
    """Text tokens 0 …, then units 1000 …"""
    return [*range(text), BEGIN, *range(1000, 1000 + audio), END]


def shape(ids: list[int]) -> str:
    """t, a, < and > for every token; runs of speech as their length."""
    out, run = "", 0
    for token in ids:
        if token >= 1000:
            run += 1
            continue
        out += f"{run}a" if run else ""
        run = 0
        out += {BEGIN: "<", END: ">"}.get(token, "t")
    return out + (f"{run}a" if run else "")


@pytest.mark.parametrize(
    ("text", "audio", "ratio", "expected"),
    [
        (10, 40, [1, 10, 4, 10], "t<8a>tttt<8a>tttt<8a>t<16a>"),
        (10, 40, [1, 4, 3, 8, 4, 10], "t<2a>ttt<6a>tttt<8a>tt<24a>"),
        (30, 10, [1, 10, 4, 10], "t<8a>" + "t" * 29 + "<2a>"),
        (1, 3, [1, 10, 4, 10], "t<3a>"),
        (5, 16, [1, 10], "t<8a>tttt<8a>"),
        (0, 40, [1, 10, 4, 10], "<40a>"),
    ],
)
def test_verified_orders(text, audio, ratio, expected):
    found = interleave(content(text, audio), BEGIN, END, ratio)
    assert shape(found) == expected


def test_without_a_ratio_it_is_boosts():
    assert interleave(content(10, 40), BEGIN, END) == interleave(content(10, 40), BEGIN, END, [1, 10, 4, 10])


def test_text_alone_and_speech_alone_stay():
    assert interleave([3, 4, 5], BEGIN, END) == [3, 4, 5]
    assert interleave([BEGIN, 1000, END], BEGIN, END) == [BEGIN, 1000, END]


def test_text_behind_the_speech_joins_the_text_before_it():
    found = interleave([0, BEGIN, *range(1000, 1020), END, 1, 2], BEGIN, END)
    assert [token for token in found if token < BEGIN] == [0, 1, 2]
    assert shape(found) == "t<8a>tt<12a>"


@given(
    st.integers(1, 60),
    st.integers(1, 90),
    st.lists(st.tuples(st.integers(1, 5), st.integers(3, 12)), min_size=1, max_size=3),
)
def test_nothing_is_lost_and_every_chunk_speaks(text, audio, pairs):
    ratio = [count for pair in pairs for count in pair]
    found = interleave(content(text, audio), BEGIN, END, ratio)
    assert [token for token in found if token < BEGIN] == list(range(text))
    assert [token for token in found if token >= 1000] == list(range(1000, 1000 + audio))
    read = read_answer(found, begin=BEGIN, end=END, first_unit=1000, n_units=100, stops=())
    assert read.well_marked and read.runs == found.count(BEGIN) == found.count(END)


def test_an_empty_run_of_speech_is_refused():
    """The original drops all text behind the first chunk."""
    with pytest.raises(InputError, match="line 3: its run of speech is empty"):
        interleave([0, 1, 2, BEGIN, END], BEGIN, END, where="line 3")


@pytest.mark.parametrize(
    "ids",
    [[0, BEGIN, 1000], [0, END], [BEGIN, 1000, END, 0, BEGIN, 1000, END], [0, END, 1000, BEGIN]],
)
def test_speech_must_be_one_marked_run(ids):
    with pytest.raises(InputError, match="one run between two markers"):
        interleave(ids, BEGIN, END)


@pytest.mark.parametrize("ratio", [[], [1], [1, 2], [0, 10], [1, 10, 4]])
def test_what_is_no_ratio_is_refused(ratio):
    with pytest.raises(InputError, match="text_audio_interval_ratio"):
        interleave(content(3, 9), BEGIN, END, ratio)


def test_an_answer_laid_out_is_read_back(plus):
    ids = plus.lay_out("Yes, it is.\n", [unit % FEW for unit in range(60)], [1, 4, 3, 8, 4, 10])
    assert ids[-1] == plus.turn_end and ids[1] == plus.begin
    read = plus.read(ids)
    assert plus.tokenizer.decode(read.text) == "Yes, it is.\n"
    assert read.units == [unit % FEW for unit in range(60)]
    assert read.ended and read.well_marked and read.runs == 4


def test_text_class_and_speech_class(plus):
    ids = torch.tensor([*plus.encode("hi"), plus.begin, plus.first_unit, plus.end, plus.turn_end])
    assert plus.is_text(ids).tolist() == [True, True, False, False, False, True]


# answers that the schedule broke


def read(*ids: int):
    return read_answer(ids, begin=BEGIN, end=END, first_unit=1000, n_units=50, stops=(880, 881))


@pytest.mark.parametrize(
    "ids",
    [
        (1, BEGIN, 1000, 1001, 2),  # no end of the run
        (1, 1000, 1001, END, 2),  # no beginning
        (1, BEGIN, BEGIN, 1000, 1001, END, 2),
        (1, BEGIN, 1000, 1001, END, END, 2),
        (1, BEGIN, 1000, 2, 1001, END),  # text inside
        (1, BEGIN, END, 2, BEGIN, 1000, 1001, END),  # an empty run
        (1, 1000, 1001, 2),
    ],
)
def test_missing_and_doubled_markers_lose_no_speech(ids):
    answer = read(*ids)
    assert (answer.text, answer.units) == ([1, 2], [0, 1])
    assert not answer.well_marked and not answer.ended


def test_an_answer_is_over_at_its_end():
    answer = read(1, BEGIN, 1000, END, 881, 2, 1001)
    assert (answer.text, answer.units, answer.ended, answer.well_marked) == ([1], [0], True, True)


def test_other_control_tokens_are_neither():
    answer = read(1, 905, BEGIN, 1000, END)
    assert (answer.text, answer.units, answer.well_marked) == ([1], [0], True)


def test_nothing_said_is_nothing():
    answer = read()
    assert (answer.text, answer.units, answer.runs, answer.ended, answer.well_marked) == ([], [], 0, False, True)


def test_a_padding_row_is_no_token():
    with pytest.raises(InputError, match="token 1050 has no meaning"):
        read(1, BEGIN, 1050)


# vocabularies that do not fit


@pytest.fixture
def copied(plus_folder, tmp_path) -> Path:
    return Path(shutil.copytree(plus_folder, tmp_path / "copy"))


def test_a_boost_tokenizer_in_a_plus_folder_is_refused(boost_folder, plus_folder, copied):
    """The original would take the first piece of `<|context_of_audio|>` for it."""
    shutil.copy(boost_folder / "tokenizer.json", copied / "tokenizer.json")
    with pytest.raises(InputError, match=re.escape("lacks <|context_of_audio|>, which qwen2_mtp_sensevoice has")):
        load_tokens(copied)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(copied):
    said = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(said | {"vocab_size": 320}))
    with pytest.raises(InputError, match="vocab_size: 320 embeddings, the tokenizer has ids up to"):
        load_tokens(copied)


def test_a_gap_among_the_units_is_refused(copied):
    file = copied / "tokenizer.json"
    file.write_text(file.read_text().replace("<|audio_7|>", "<|voice_7|>"))
    with pytest.raises(InputError, match="do not follow each other"):
        load_tokens(copied)


def test_tokens_behind_the_units_are_refused(copied):
    file = copied / "tokenizer.json"
    file.write_text(file.read_text().replace(f"<|audio_{FEW - 1}|>", "<|more|>"))
    with pytest.raises(InputError, match=re.escape(f"tokens behind <|audio_{FEW - 2}|>")):
        load_tokens(copied)


def test_a_tokenizer_that_is_not_there_or_damaged_is_named(copied):
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not a tokenizer that transformers can load") as caught:
        load_tokens(copied)
    assert "\n" not in str(caught.value)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer.json: expected beside config.json"):
        load_tokens(copied)
