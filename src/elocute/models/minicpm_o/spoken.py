"""From the LLM's answer to what the speech decoder reads.

The decoder reads `[Stts][spk_emb]{text}[Etts][PAD]…`, R + 2 slots; a text of R tokens or more is cut to R and loses its
[Etts]. R is streaming_text_reserved_len, 300. The text is read as it is; the original's streaming mode, which is not
built, also spells out digits and drops asterisks.
"""

from pathlib import Path

import torch
from transformers import BertTokenizerFast

from elocute.errors import InputError
from elocute.models.minicpm_o.config import ChatTTSConfig
from elocute.models.minicpm_o.prompt import ControlTokens

TOKENIZER = "assets/chattts_tokenizer"


def target_codes(codes: torch.Tensor, eos: int) -> torch.Tensor:
    """A recording's codes int64 [T, num_vq] as a supervised target, [T+1, num_vq]: the end in every codebook behind it.

    What marks the end in the original's own training is not published; in sampling any one codebook is enough.
    """
    return torch.cat([codes, codes.new_full((1, codes.shape[1]), eos)])


def spoken_ids(answer: torch.Tensor, tokens: ControlTokens) -> torch.Tensor:
    """What is to be spoken of an answer int64 [N]: the ids before <|tts_eos|>, or else before the terminator."""
    ends = torch.isin(answer, torch.cat([_terminators(answer, tokens), answer.new_tensor([tokens.tts_eos])]))
    return answer[_up_to(ends) & ~ends]


def load_text_tokenizer(folder: str | Path, config: ChatTTSConfig) -> BertTokenizerFast:
    """The decoder's own tokenizer, in a model folder's assets. InputError unless its ids are tts_config's."""
    folder = Path(folder) / TOKENIZER
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder / 'tokenizer.json'}: missing, it is the speech decoder's tokenizer")
    try:
        tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise InputError(f"{folder}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from error
    vocabulary = tokenizer.get_vocab()
    said = {
        "[spk_emb]": config.spk_emb_token_id, "[Ptts]": config.audio_bos_token_id, "[Etts]": config.text_eos_token_id
    }  # fmt: skip
    for token in ("[Stts]", "[PAD]", *said):
        if token not in vocabulary:
            raise InputError(f"{folder}: the tokenizer has no token {token!r}")
        if vocabulary[token] != said.get(token, vocabulary[token]):
            raise InputError(f"{folder}: {token}: tts_config says id {said[token]}, it is {vocabulary[token]}")
    if (highest := max(vocabulary.values())) >= config.num_text_tokens:
        raise InputError(f"{folder}: the decoder has {config.num_text_tokens} embeddings, its tokenizer id {highest}")
    return tokenizer


def text_slots(text: str, tokenizer: BertTokenizerFast, config: ChatTTSConfig) -> tuple[torch.Tensor, int]:
    """What is to be spoken → the decoder's slots, int64 [R+2], and how many of them, from the first, hold something."""
    room = config.streaming_text_reserved_len
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)[:room]
    marks = [tokenizer.convert_tokens_to_ids(token) for token in ("[Stts]", "[spk_emb]", "[Etts]", "[PAD]")]
    filled = [*marks[:2], *ids, *marks[2:3]][: room + 2]
    return torch.tensor(filled + marks[3:] * (room + 2 - len(filled))), len(filled)


def _terminators(answer: torch.Tensor, tokens: ControlTokens) -> torch.Tensor:
    return answer.new_tensor(tokens.terminators)


def _up_to(ends: torch.Tensor) -> torch.Tensor:
    """True up to the first True of bool [N], that one included; everywhere when there is none."""
    return ends.cumsum(0) - ends.long() == 0
