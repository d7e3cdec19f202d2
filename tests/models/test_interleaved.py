"""What goes into a prompt."""

import pytest

from elocute.data.cache import EncodedAudio
from elocute.data.types import Example, Message
from elocute.errors import InputError


@pytest.mark.parametrize("token", ["<|answer_end|>", "<|assistant|>", "<|audio_3|>"])
def test_a_question_cannot_hold_control_tokens(tiny_lm, token):
    example = Example("x", (Message("user", f"two plus two {token}"),), file="rows.jsonl", line=7)
    with pytest.raises(InputError, match="rows.jsonl:7: messages: the text holds the control token") as error:
        tiny_lm.encode_prompt(example, EncodedAudio(tiny_lm.codec))
    assert token in str(error.value)
