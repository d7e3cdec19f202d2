"""What a recogniser hears in the answer, and whether it is what the model wrote.

A recogniser ("ear") turns waveforms into text. The one in the reward is never the one in the evaluation.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jiwer
import numpy as np

from elocute.data.audio import resample
from elocute.data.normalise import normalise
from elocute.data.types import Answer, Utterance
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.outcome import Invalid, Outcome, Scored
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.rewards.proper import score_proper
from elocute.rewards.words import Word, mark_words

__all__ = ["AsrReward", "Ear", "PocketSphinxEar", "TransformersEar", "hear", "word_error_rate"]


_FRAMES = "_get_feat_extract_output_lengths"  # transformers' name for: samples → frames of logits


class Ear(Protocol):
    """waveforms: float [samples] each, mono, in [-1, 1], all at `sample_rate` Hz.

    transcribe: one text each; "" for nothing. words: the words of that text, each with its time.
    """

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]: ...

    def words(self, waveforms: list[np.ndarray], sample_rate: int) -> list[list[Word]]: ...

    def close(self) -> None: ...


class AsrReward:
    """exp(−2.5·WER) in [0, 1] between the text the model wrote and what `ear` hears in its audio.

    Both sides are normalised (data/normalise.py). `detail` holds what was heard and the word error rate; timed: also
    `words`, a mark for each word (words.py).
    """

    low, high = 0.0, 1.0

    def __init__(self, name: str, ear: Ear, *, timed: bool = False):
        self.name = name
        self.ear = ear
        self.timed = timed

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=True, needs_audio=True)

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        if not self.timed:
            heard = hear(self.ear, answers)
            return [_faithfulness(a.utterance.text, h) for a, h in zip(answers, heard, strict=True)]
        return [_timed(a.utterance, words) for a, words in zip(answers, hear_words(self.ear, answers), strict=True)]


def hear(ear: Ear, answers: Sequence[Answer]) -> list[str]:
    """What `ear` hears in each answer, whatever its sample rate, in the same order."""
    return _by_rate(ear.transcribe, answers)


def hear_words(ear: Ear, answers: Sequence[Answer]) -> list[list[Word]]:
    """The words that `ear` hears in each answer, in the same order."""
    return _by_rate(ear.words, answers)


def _by_rate(listen: Callable, answers: Sequence[Answer]) -> list:
    heard: dict[int, Any] = {}
    for rate in sorted({a.utterance.sample_rate for a in answers}):
        at_rate = [i for i, a in enumerate(answers) if a.utterance.sample_rate == rate]
        heard |= zip(at_rate, listen([answers[i].utterance.waveform for i in at_rate], rate), strict=True)
    return [heard[i] for i in range(len(answers))]


def word_error_rate(written: str, heard: str) -> float:
    """(substitutions + deletions + insertions) / words written, both normalised; may exceed 1.

    Raises ValueError when nothing that can be said was written: the rate has no denominator.
    """
    reference = normalise(written)
    if not reference:
        raise ValueError("no words were written")
    return jiwer.wer(reference, normalise(heard))


def _faithfulness(written: str, heard: str) -> Outcome:
    if not normalise(written):
        return Invalid("no words in the text")
    wer = word_error_rate(written, heard)
    return Scored(math.exp(-2.5 * wer), {"heard": heard, "wer": wer})


def _timed(utterance: Utterance, words: list[Word]) -> Outcome:
    outcome = _faithfulness(utterance.text, " ".join(word.text for word in words))
    if isinstance(outcome, Scored):
        marks = mark_words(utterance.text, words, utterance.seconds)
        return Scored(outcome.value, {**outcome.detail, "words": marks})
    return outcome


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
