"""Any Whisper or CTC model in a local transformers folder as an ear."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from elocute.data.audio import SILENCE, resample
from elocute.errors import InputError
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.words import Word

_FRAMES = "_get_feat_extract_output_lengths"  # transformers' name for: samples → frames of logits


class TransformersEar:
    """A multilingual Whisper is told to hear English; audio longer than its window (30 s) is heard window by window."""

    def __init__(self, path: str | Path, batch_size: int = 8, device: str | None = None):
        from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

        self.path = path
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
        heard = self._by_window(waveforms, sample_rate, self._hear)
        return [" ".join(filter(None, (text.strip() for _, text in windows))) for windows in heard]

    def words(self, waveforms: list[np.ndarray], sample_rate: int) -> list[list[Word]]:
        """See Ear. Whisper's times come from its cross-attention (`alignment_heads`), CTC's from its frames."""
        self.check_words()
        heard = self._by_window(waveforms, sample_rate, self._hear_words)
        return [
            [Word(word.text, at + word.start, at + word.end) for at, words in windows for word in words]
            for windows in heard
        ]

    # ---- of CTC models ---------------------------------------------------------------------------------------------

    def check_letters(self) -> None:
        """InputError unless it is a CTC model of single letters, that can say when it heard them."""
        if self.whisper or getattr(self.processor.tokenizer, "word_delimiter_token_id", None) is None:
            raise InputError(f"{self.path}: form: likelihood: expected a CTC model of single letters")
        self.check_words()

    def log_probs(self, waveforms: list[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        """Of each letter at each frame: float64 [frames, letters] each; no frames where there is nothing to hear."""
        heard = self._by_window(waveforms, sample_rate, self._letters)
        silence = np.empty((0, self.model.config.vocab_size))
        return [windows[0][1] if windows else silence for windows in heard]

    def read(self, log_probs: np.ndarray) -> str:
        """The likeliest letters of frames [frames, letters], as text."""
        return self.processor.tokenizer.decode(log_probs.argmax(-1), skip_special_tokens=True)

    def spell(self, word: str) -> list[int]:
        """The letters of a word, in lower case. ValueError naming one that the model does not have."""
        vocabulary = self.processor.tokenizer.get_vocab()
        letters = word if "a" in vocabulary else word.upper()
        if unknown := [letter for letter in letters if letter not in vocabulary]:
            raise ValueError(f"the ear has no letter {unknown[0]!r}")
        return [vocabulary[letter] for letter in letters]

    @property
    def space(self) -> int:
        """The letter between words."""
        return self.processor.tokenizer.word_delimiter_token_id

    @property
    def blank(self) -> int:
        """The letter that is none."""
        return self.processor.tokenizer.pad_token_id

    @property
    def seconds_a_frame(self) -> float:
        return self.model.config.inputs_to_logits_ratio / self.rate

    # ----------------------------------------------------------------------------------------------------------------

    def check_words(self) -> None:
        """InputError when the model cannot say when a word was spoken."""
        if self.whisper and not getattr(self.model.generation_config, "alignment_heads", None):
            raise InputError(f"{self.path}: no times of words: its generation_config.json has no alignment_heads")
        if not self.whisper and not hasattr(self.model.config, "inputs_to_logits_ratio"):
            raise InputError(f"{self.path}: no times of words: its config does not say how long a frame is")

    def close(self) -> None:
        """Nothing is held open."""

    def _by_window(self, waveforms: list[np.ndarray], sample_rate: int, hear: Callable) -> list[list[tuple]]:
        """What each waveform's windows give, with where they begin, in seconds: [waveforms][windows]."""
        pieces = [
            (i, begin, window)
            for i, waveform in enumerate(waveforms)
            for begin, window in self._windows(resample(waveform, sample_rate, self.rate))
        ]
        heard: list[list[tuple]] = [[] for _ in waveforms]
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            for (i, begin, _), found in zip(batch, hear([window for _, _, window in batch]), strict=True):
                heard[i].append((begin / self.rate, found))
        return heard

    @property
    def _longest(self) -> int:
        return self.processor.feature_extractor.n_samples if self.whisper else 0  # a CTC model hears all at once

    def _windows(self, waveform: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(its first sample, the window), without those that hold nothing."""
        # Half a receptive field of a CTC encoder: shorter audio holds no word, and its convolutions would fail.
        shortest = self.rate // 40
        longest = self._longest or max(1, len(waveform))
        windows = [(i, waveform[i : i + longest]) for i in range(0, len(waveform), longest)]
        # Nor does digital silence hold one, where Whisper makes words up.
        return [(i, w) for i, w in windows if len(w) >= shortest and np.abs(w).max() >= SILENCE]

    def _hear(self, batch: list[np.ndarray]) -> list[str]:
        tokens = self._generated(batch) if self.whisper else self._frames(batch)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)

    def _hear_words(self, batch: list[np.ndarray]) -> list[list[Word]]:
        if self.whisper:
            found = self._generated(batch, return_token_timestamps=True)
            ends = [len(waveform) / self.rate for waveform in batch]
            return [self._joined(*of) for of in zip(found["sequences"], found["token_timestamps"], ends, strict=True)]
        frame, letters = self.seconds_a_frame, self._frames(batch)
        said = self.processor.tokenizer.batch_decode(letters, skip_special_tokens=True, output_word_offsets=True)
        return [
            [Word(w["word"], w["start_offset"] * frame, w["end_offset"] * frame) for w in words if w["word"]]
            for words in said.word_offsets
        ]

    def _joined(self, tokens, times, end: float) -> list[Word]:
        """Whisper's tokens [T] and when each begins [T] → words; a token that begins with a space begins a word."""
        tokenizer, special = self.processor.tokenizer, set(self.processor.tokenizer.all_special_ids)
        pieces = [(tokenizer.decode([t]), at) for t, at in zip(tokens.tolist(), times.tolist(), strict=True)
                  if t not in special]  # fmt: skip
        words: list[Word] = []
        for n, (piece, start) in enumerate(pieces):
            until = min(pieces[n + 1][1], end) if n + 1 < len(pieces) else end
            if words and not piece.startswith(" "):
                words[-1] = Word(words[-1].text + piece, words[-1].start, until)
            else:
                words.append(Word(piece.strip(), start, until))
        return [word for word in words if word.text]

    def _generated(self, batch: list[np.ndarray], **how):
        """What Whisper writes: its features are always one window long."""
        import torch

        inputs = self.processor(
            batch, sampling_rate=self.rate, return_tensors="pt", return_attention_mask=bool(how)
        ).to(self.model.device)  # fmt: skip
        if getattr(self.model.generation_config, "is_multilingual", False):
            how |= {"language": "en", "task": "transcribe"}
        with torch.inference_mode():
            return self.model.generate(**inputs, **how)

    def _frames(self, batch: list[np.ndarray]):
        """The likeliest letter of each frame of a CTC model [B, frames]; frames of padding have none."""
        logits, frames = self._logits(batch)
        tokens = logits.argmax(-1)
        for row, own in zip(tokens, frames, strict=True):
            row[own:] = self.blank
        return tokens

    def _letters(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        logits, frames = self._logits(batch)
        found = logits.double().log_softmax(-1).cpu().numpy()
        return [row[:own] for row, own in zip(found, frames, strict=True)]

    def _logits(self, batch: list[np.ndarray]):
        """A CTC model's logits [B, frames, letters], a batch padded to its longest, and each row's own frames [B]."""
        import torch

        inputs = self.processor(batch, sampling_rate=self.rate, return_tensors="pt", padding=True).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits
        if "attention_mask" not in inputs:
            return logits, [logits.shape[1]] * len(batch)
        return logits, getattr(self.model, _FRAMES)(inputs["attention_mask"].sum(-1)).tolist()
