"""Kimi-Audio's text tokenizer: the published `tiktoken.model`, and its special tokens by their names.

`tiktoken.model` holds a line for each token, its bytes in base64 and its rank, which is its id. Special tokens stand
in `tokenizer_config.json: added_tokens_decoder` and nowhere else: the text of a message is encoded without them, so
that no message can end a turn. Text is not normalised (the original's way with Unicode forms is not documented).
"""

import base64
from pathlib import Path

from transformers.convert_slow_tokenizer import TikTokenConverter

from elocute.data.files import read_json
from elocute.errors import InputError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What text is cut into before its bytes are merged: Qwen2's pattern, every digit alone."""


class KimiTokenizer:
    """Text ⇄ ids. special: a special token's name → its id; n_base: ids 0 … n_base − 1 are text."""

    def __init__(self, ranks: dict[bytes, int], special: dict[str, int]):
        self.special, self.n_base = special, len(ranks)
        self._bytes = {id: token for token, id in ranks.items()}
        self._names = {id: name.encode() for name, id in special.items()}
        self._bpe = _Converter(ranks).converted()

    @classmethod
    def load(cls, folder: str | Path) -> "KimiTokenizer":
        """Of a published folder. InputError names what is missing or malformed."""
        ranks = _read_ranks(Path(folder) / "tiktoken.model")
        return cls(ranks, _read_special(Path(folder) / "tokenizer_config.json", len(ranks)))

    def encode(self, text: str) -> list[int]:
        """A message's text as ids; the name of a special token in it is text like any other."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """Ids as text; special tokens by their names, reserved ones by their ids, bytes that are no UTF-8 as �."""
        pieces = (self._bytes.get(id) or self._names.get(id) or f"<|{id}|>".encode() for id in map(int, ids))
        return b"".join(pieces).decode("utf-8", errors="replace")


class _Converter(TikTokenConverter):
    """transformers' converter, given the ranks: it would need another package to read them."""

    def __init__(self, ranks: dict[bytes, int]):
        super().__init__(pattern=PATTERN)
        self._ranks = ranks

    def load_tiktoken_bpe(self, _) -> dict[bytes, int]:
        return self._ranks


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{file}: not a tokenizer's ranks: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise InputError(f"{file}:{number}: expected a token in base64 and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise InputError(f"{file}: expected ranks 0, 1, … of at least the 256 bytes, each once")
    if lacking := [value for value in range(256) if bytes([value]) not in ranks]:
        raise InputError(f"{file}: no token for the byte {lacking[0]}")
    return ranks


def _read_special(file: Path, n_base: int) -> dict[str, int]:
    said = read_json(file, "a tokenizer's config").get("added_tokens_decoder")
    try:
        special = {token["content"]: int(id) for id, token in said.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: added_tokens_decoder: expected id → {{content: name}}: {error}") from error
    if len(special) != len(said):
        raise InputError(f"{file}: added_tokens_decoder: a name stands there twice")
    if inside := [name for name, id in special.items() if id < n_base]:
        raise InputError(f"{file}: added_tokens_decoder: {inside[0]!r} lies among the {n_base} text tokens")
    return special
