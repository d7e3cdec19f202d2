"""MiniCPM-o 2.6's prompts, and what the decoder reads of an answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from elocute.errors import InputError
from elocute.models.minicpm_o import MiniCPMOConfig
from elocute.models.minicpm_o.audio import embedding_count
from elocute.models.minicpm_o.prompt import (
    Recording,
    Turn,
    audio_places,
    lay_out,
    load_tokenizer,
    spans,
    speaker_place,
)
from elocute.models.minicpm_o.spoken import load_text_tokenizer, spoken_ids, target_codes, text_slots
from tests.contracts import minicpm_o


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "model")


@pytest.fixture(scope="module")
def config(folder) -> MiniCPMOConfig:
    return MiniCPMOConfig.read(folder)


@pytest.fixture(scope="module")
def llm(folder, config):
    return load_tokenizer(folder, config)


@pytest.fixture(scope="module")
def reader(folder, config):
    return load_text_tokenizer(folder, config.tts)


# ---- the LLM's side ------------------------------------------------------------------------------------------------


def test_a_prompt_that_asks_for_speech(config):
    turns = [Turn("user", ["Clone this voice.", Recording(8000), "Be kind."]), Turn("user", ["Say hello."])]
    sound = "<|audio_start|>" + "<unk>" * 12 + "<|audio_end|>"
    assert lay_out(turns, config, speak=True) == (
        f"<|im_start|>user\nClone this voice.\n{sound}\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nSay hello.<|im_end|>\n"
        "<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>"
    )
    assert lay_out(turns[1:], config, speak=False).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_omni_mode_joins_without_line_breaks(config):
    turn = Turn("user", ["a", "b", Recording(16000)])
    assert lay_out([turn], config, speak=False, omni=True).startswith("<|im_start|>user\nab<|audio_start|><unk>")


@pytest.mark.parametrize("seconds, sizes", [(0.5, [12]), (1, [25]), (2.2, [25, 25, 5]), (31, [25] * 31)])
def test_chunked_recordings_have_25_places_a_second(config, seconds, sizes):
    places = audio_places(round(seconds * 16000), config)
    assert places == "".join("<|audio_start|>" + "<unk>" * size + "<|audio_end|>" for size in sizes)


def test_recordings_in_one_piece(config):
    places = audio_places(35200, replace(config, chunk_input=False))
    assert places == "<|audio_start|>" + "<unk>" * 55 + "<|audio_end|>"


def test_chunk_input_must_be_said(config):
    with pytest.raises(InputError, match="chunk_input: missing"):
        lay_out([Turn("user", [Recording(16000)])], replace(config, chunk_input=None), speak=True)
    assert "text" in lay_out([Turn("user", ["text"])], replace(config, chunk_input=None), speak=True)


def test_the_places_tokenise_to_the_placeholder_and_spans_find_them(config, llm):
    tokenizer, tokens = llm
    ids = torch.tensor(tokenizer.encode(lay_out([Turn("user", ["x", Recording(40000), "y"])], config, speak=True)))
    found = spans(ids, tokens.audio_start, tokens.audio_end)
    assert [stop - start for start, stop in found] == [25, 25, 12]
    assert sum(stop - start for start, stop in found) == embedding_count(40000)
    assert all((ids[start:stop] == tokens.audio_place).all() for start, stop in found)


def test_the_voice_stands_at_spk_of_the_last_span(config, llm):
    tokenizer, tokens = llm
    once = lay_out([Turn("user", ["hi"])], config, speak=True)
    ids = torch.tensor(tokenizer.encode(once + "hello<|tts_eos|><|im_end|>\n" + once))
    place = speaker_place(ids, tokens)
    assert ids[place] == tokens.spk and place == (ids == tokens.spk).nonzero()[-1, 0] == len(ids) - 3
    with pytest.raises(ValueError, match="expected <.spk_bos.><.spk.><.spk_eos.>"):
        speaker_place(torch.tensor(tokenizer.encode("hi")), tokens)


def test_a_mark_without_its_partner_is_seen(llm):
    _, tokens = llm
    for ids in ([tokens.audio_start], [tokens.audio_end, tokens.audio_start]):
        with pytest.raises(ValueError, match="expected pairs of tokens"):
            spans(torch.tensor(ids), tokens.audio_start, tokens.audio_end)


# ---- the decoder's side --------------------------------------------------------------------------------------------


def words(reader, ids: torch.Tensor) -> list[str]:
    return reader.convert_ids_to_tokens(ids.tolist())


def test_text_slots(config, reader):
    slots, length = text_slots("Hello, cats!", reader, config.tts)
    assert len(slots) == 302 and length == 8
    assert words(reader, slots[:9]) == ["[Stts]", "[spk_emb]", "hello", ",", "cat", "##s", "!", "[Etts]", "[PAD]"]
    assert (slots[length:] == reader.pad_token_id).all()


@pytest.mark.parametrize("count, has_end", [(298, True), (299, True), (300, False), (305, False)])
def test_a_text_of_300_tokens_loses_its_end(config, reader, count, has_end):
    slots, length = text_slots("the " * count, reader, config.tts)
    assert length == min(count + 3, 302) and len(slots) == 302
    assert words(reader, slots[2:302]).count("the") == min(count, 300)
    assert ("[Etts]" in words(reader, slots)) == has_end == (words(reader, slots[length - 1 : length]) == ["[Etts]"])


def test_the_slots_are_the_ids_of_the_originals_one_string(config, reader):
    """The original writes one string with all its marks and tokenises that."""
    text = "The cat's mat, [PAD] sat?"
    slots, length = text_slots(text, reader, config.tts)
    whole = f"[Stts][spk_emb]{text}[Etts]" + "[PAD]" * (302 - length) + "[Ptts]"
    ids = reader.encode(whole, add_special_tokens=False)
    assert ids[:-1] == slots.tolist() and ids[-1] == config.tts.audio_bos_token_id


def test_spoken_is_what_stands_before_the_end(llm):
    tokenizer, tokens = llm
    for answer in (
        "hi there<|tts_eos|><|im_end|>",
        "hi there<|im_end|>",
        "hi there",
        "hi there<|endoftext|>x<|tts_eos|>",
    ):
        ids = torch.tensor(tokenizer.encode(answer))
        assert tokenizer.decode(spoken_ids(ids, tokens)) == "hi there"


def test_a_target_ends_in_every_codebook():
    codes = target_codes(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 625)
    assert codes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [625] * 4]


def test_numbers_of_embeddings_by_the_papers_formula():
    """f = ⌈N/160⌉, c = (f−1)//2+1, (c−2)//2+1; pieces of 30 s add up."""
    for samples in [1, 160, 161, 320, 480, 640, 4000, 15999, 16000, 16001, 479_999, 480_000]:
        f = -(-samples // 160)
        c = (f - 1) // 2 + 1
        assert embedding_count(samples) == (c - 2) // 2 + 1
    assert embedding_count(1_000_000) == 2 * 750 + embedding_count(40_000)
    assert embedding_count(0) == 0 == embedding_count(480_000) - 750
    assert np.all(np.diff([embedding_count(n) for n in range(0, 500_000, 777)]) >= 0)
