"""What a textless model said, written down by a recogniser: rewards that read then judge it as they judge any text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from elocute.data.audio import load_audio
from elocute.data.normalise import normalise
from elocute.data.types import Answer, AudioRef, Example
from elocute.errors import InputError
from elocute.rewards.asr import Ear, hear
from elocute.rewards.judge import question_of


class Transcriber:
    """Gives answers without text the words that `ear` hears, and prompts without words (`question_text`) theirs."""

    def __init__(self, ear: Ear):
        self.ear = ear
        self._heard: dict[tuple[Path, float | None], str] = {}

    def __call__(self, answers: Sequence[Answer]) -> list[Answer]:
        """The same answers in the same order; one that has text, or no sound, is left as it is."""
        mute = [i for i, a in enumerate(answers) if not a.utterance.text and len(a.utterance.waveform)]
        heard = dict(zip(mute, hear(self.ear, [answers[i] for i in mute]), strict=True)) if mute else {}
        examples = self.prompts([answer.example for answer in answers])
        return [
            Answer(example, replace(answer.utterance, text=heard[i]) if i in heard else answer.utterance)
            for i, (answer, example) in enumerate(zip(answers, examples, strict=True))
        ]

    def prompts(self, examples: Sequence[Example]) -> list[Example]:
        """The rows, with words for their prompts. InputError for a sound file that cannot be read."""
        wordless = [example for example in examples if _wordless(example)]
        missing = {ref: example for example in wordless for ref in _sounds(example) if _key(ref) not in self._heard}
        if missing:
            sounds = [_load(example, ref) for ref, example in missing.items()]
            for rate in sorted({rate for _, rate in sounds}):
                refs = [ref for ref, (_, own) in zip(missing, sounds, strict=True) if own == rate]
                texts = self.ear.transcribe([waveform for waveform, own in sounds if own == rate], rate)
                self._heard |= zip(map(_key, refs), texts, strict=True)
        return [self._with_words(example) if _wordless(example) else example for example in examples]

    def assumed(self, example: Example) -> Example:
        """The row as it will be once its prompt has been heard: for checks that come before any listening."""
        return replace(example, question_text="heard") if _wordless(example) and _sounds(example) else example

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _with_words(self, example: Example) -> Example:
        words = " ".join(filter(None, (self._heard[_key(ref)] for ref in _sounds(example))))
        return replace(example, question_text=words or None)


def _wordless(example: Example) -> bool:
    return not normalise(question_of(example)[0])


def _sounds(example: Example) -> list[AudioRef]:
    """The prompt's sound files, in order; encoded units cannot be listened to."""
    return [ref for ref in example.audios if ref.key is None]


def _key(ref: AudioRef) -> tuple[Path, float | None]:
    return ref.path, ref.seconds


def _load(example: Example, ref: AudioRef):
    try:
        return load_audio(ref.path, seconds=ref.seconds)
    except InputError as error:
        raise InputError(f"{example.where}: audios: {error}") from None
