"""Control tokens: no text may hold one, for it would end a turn, or speak for the model."""

import re

from elocute.errors import InputError


def control_tokens(tokenizer) -> re.Pattern:
    """What finds a tokenizer's control tokens in a text.

    Numbered ones, as units are, by their form: 65,536 alternatives take seconds to compile.
    """
    control = set(tokenizer.get_added_vocab()) - {"<|audio|>"}
    forms = {re.sub(r"(?<=\D)\d+(?=\D)", r"\\d+", re.escape(token)) for token in control}
    return re.compile("|".join(sorted(forms, key=len, reverse=True)) or r"(?!)")


def check_text(control: re.Pattern, where: str, *texts: str) -> None:
    """InputError, which begins with `where`, for the first of the texts that holds a control token."""
    for text in texts:
        if found := control.search(text):
            raise InputError(f"{where}: the text holds the control token {found[0]!r}")
