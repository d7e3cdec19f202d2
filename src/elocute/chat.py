"""One turn with a model: a question in, an utterance out."""

from collections.abc import Sequence
from pathlib import Path

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message, Utterance
from elocute.errors import InputError
from elocute.models import check_answers_questions, load_speaker
from elocute.rollout import Sampling, sample_groups


def one_turn(
    model: Path,
    *,
    audio: Path | None,
    text: str | None,
    max_new_tokens: int,
    seed: int,
    temperature: float | Sequence[float] | None = None,
) -> Utterance:
    """Ask the model in `model` by a sound file or in writing; a textless one continues the sound file.

    The utterance says in `broken` why it is no proper answer, if it is none. InputError for a question it cannot take.
    """
    if text is not None and not text.strip():
        raise InputError("--text: expected a question, got nothing")
    if text is not None and "<|audio|>" in text:
        raise InputError("--text: <|audio|> marks a place for audio; use --audio")
    check_answers_questions(model)
    lm = load_speaker(model)
    if text is not None and lm.layout.text_end is None:
        raise InputError(f"--text: {model} is textless, it hears only; use --audio")
    content = "<|audio|>" if audio is not None else text
    audios = () if audio is None else (AudioRef(audio),)
    example = Example(id="chat", messages=(Message("user", content),), audios=audios)
    prompt = lm.encode_prompt(example, EncodedAudio(lm.codec))
    rollout = sample_groups(lm, [prompt], [[seed]], Sampling(max_new_tokens, temperature))[0][0]
    return lm.decode(rollout.tokens.ids)
