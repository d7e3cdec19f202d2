"""What a recogniser hears in the answer, and whether it is what the model wrote.

A recogniser ("ear") turns waveforms into text. The one in the reward is never the one in the evaluation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import jiwer
import numpy as np

from elocute.data.audio import resample
from elocute.data.normalise import normalise
from elocute.data.rows import AUDIO_MARK, check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.recipe.rewards import Reference
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.outcome import Invalid, Outcome, Scored
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.rewards.proper import score_proper

__all__ = ["AsrReward", "Ear", "PocketSphinxEar", "TransformersEar", "asked", "hear", "word_error_rate"]


_FRAMES = "_get_feat_extract_output_lengths"  # transformers' name for: samples → frames of logits


class Ear(Protocol):
    """waveforms: float [samples] each, mono, in [-1, 1], all at `sample_rate` Hz. One text each; "" for nothing."""

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]: ...

    def close(self) -> None: ...


FORMS: dict[str, Callable[[float], float]] = {
    "exp": lambda wer: math.exp(-2.5 * wer),
    "linear": lambda wer: 1 - min(wer, 1.0),
    "tanh": lambda wer: 1 - math.tanh(3 * wer),
}
"""Word error rate → reward, 1 at no error and never below 0."""


class AsrReward:
    """`form` of the WER, in [0, 1], between what should be said and what `ear` hears in the audio.

    reference: see `asked`. Both sides are normalised (data/normalise.py). `detail` holds what was heard and the word
    error rate.
    """

    low, high = 0.0, 1.0
    measures = ("wer",)

    def __init__(self, name: str, ear: Ear, form: str = "exp", reference: Reference = "written"):
        self.name = name
        self.ear = ear
        self.form, self.reference = FORMS[form], reference

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a word to say."""
        if self.reference == "prompt":
            check_rows(examples, _has_words)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=self.reference == "written", needs_audio=True)

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        heard = hear(self.ear, answers)
        return [self._faithfulness(asked(a, self.reference), h) for a, h in zip(answers, heard, strict=True)]

    def _faithfulness(self, wanted: str, heard: str) -> Outcome:
        if not normalise(wanted):
            return Invalid("no words in the text")
        wer = word_error_rate(wanted, heard)
        return Scored(self.form(wer), {"heard": heard, "wer": wer})


def asked(answer: Answer, reference: Reference) -> str:
    """What should be said. "written": the text that the model wrote; "prompt": what the last user turn gives to say."""
    return answer.utterance.text if reference == "written" else _prompt(answer.example)


def hear(ear: Ear, answers: Sequence[Answer]) -> list[str]:
    """What `ear` hears in each answer, whatever its sample rate, in the same order."""
    heard: dict[int, str] = {}
    for rate in sorted({a.utterance.sample_rate for a in answers}):
        at_rate = [i for i, a in enumerate(answers) if a.utterance.sample_rate == rate]
        heard |= zip(at_rate, ear.transcribe([answers[i].utterance.waveform for i in at_rate], rate), strict=True)
    return [heard[i] for i in range(len(answers))]


def word_error_rate(written: str, heard: str) -> float:
    """(substitutions + deletions + insertions) / words written, both normalised; may exceed 1.

    Raises ValueError when nothing that can be said was written: the rate has no denominator.
    """
    reference = normalise(written)
    if not reference:
        raise ValueError("no words were written")
    return jiwer.wer(reference, normalise(heard))


def _prompt(example: Example) -> str:
    return example.messages[-1].content.replace(AUDIO_MARK, " ")


def _has_words(example: Example) -> None:
    if not normalise(_prompt(example)):
        raise InputError(
            f"{example.where}: messages: expected words to say in the last turn, found {_prompt(example)!r}"
        )


class TransformersEar:
    """Any Whisper or CTC model in a local transformers folder; a multilingual Whisper is told to hear English.

    Audio longer than the model's window (Whisper: 30 s) is heard window by window.
    """

    def __init__(self, path: str | Path, batch_size: int = 8, device: str | None = None):
        from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

        self.whisper = open_folder(path, AutoConfig).model_type == "whisper"
        self.processor = open_folder(path, AutoProcessor)
        self.model = open_model(path, AutoModelForSpeechSeq2Seq if self.whisper else AutoModelForCTC, device)
        extractor = self.processor.feature_extractor
        self.rate = extractor.sampling_rate
        # A CTC model without an attention mask hears its padding: only one recording at a time gives one result.
        masks = getattr(extractor, "return_attention_mask", False) and hasattr(self.model, _FRAMES)
        self.batch_size = batch_size if self.whisper or masks else 1

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]:
        """See Ear."""
        pieces, owner = [], []
        for i, waveform in enumerate(waveforms):
            windows = self._windows(resample(waveform, sample_rate, self.rate))
            pieces += windows
            owner += [i] * len(windows)
        texts: list[list[str]] = [[] for _ in waveforms]
        for start in range(0, len(pieces), self.batch_size):
            batch = slice(start, start + self.batch_size)
            for i, text in zip(owner[batch], self._hear(pieces[batch]), strict=True):
                texts[i].append(text.strip())
        return [" ".join(filter(None, parts)) for parts in texts]

    def close(self) -> None:
        """Nothing is held open."""

    def _windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        # Half a receptive field of a CTC encoder: shorter audio holds no word, and its convolutions would fail.
        shortest = self.rate // 40
        longest = self.processor.feature_extractor.n_samples if self.whisper else max(1, len(waveform))
        windows = [waveform[i : i + longest] for i in range(0, len(waveform), longest)]
        return [w for w in windows if len(w) >= shortest]

    def _hear(self, batch: list[np.ndarray]) -> list[str]:
        import torch

        # Whisper's features are always one window long; a CTC batch is padded to its longest.
        padding = {} if self.whisper else {"padding": True}
        inputs = self.processor(batch, sampling_rate=self.rate, return_tensors="pt", **padding).to(self.model.device)
        with torch.inference_mode():
            if not self.whisper:
                tokens = self.model(**inputs).logits.argmax(-1)
                if "attention_mask" in inputs:  # frames of padding spell letters too
                    frames = getattr(self.model, _FRAMES)(inputs["attention_mask"].sum(-1))
                    past = torch.arange(tokens.shape[1], device=tokens.device) >= frames[:, None]
                    tokens[past] = self.processor.tokenizer.pad_token_id
            elif getattr(self.model.generation_config, "is_multilingual", False):
                tokens = self.model.generate(**inputs, language="en", task="transcribe")
            else:
                tokens = self.model.generate(**inputs)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)
