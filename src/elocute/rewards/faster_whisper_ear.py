"""Whisper in CTranslate2's format as an ear, by faster-whisper: offline, in int8; tiny.en comes in a package.

What is heard depends on the waveform alone: every window is decoded by itself, by beam search without sampling and
without the text of the window before. Whisper may make words up where there is no sound (tiny.en: "you" in twenty
seconds of zeros), so a window of digital silence is not given to it. Noise is.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from elocute.data.audio import SILENCE, resample
from elocute.errors import InputError
from elocute.rewards.packaged import whisper_tiny
from elocute.rewards.words import Word

BEAM = 5
_FILES = ("model.bin", "config.json", "tokenizer.json")  # faster-whisper would ask the network for a missing tokenizer
_HOW = {
    "language": "en", "task": "transcribe", "beam_size": BEAM, "temperature": 0.0, "condition_on_previous_text": False,
    "without_timestamps": True,
}  # fmt: skip


class FasterWhisperEar:
    """A multilingual Whisper is told to hear English; audio longer than its window (30 s) is heard window by window.

    path: a folder that CTranslate2's converter wrote, or None: the packaged tiny.en. workers: waveforms that are heard
    side by side, each on one core. device: "cpu" or "cuda". Raises InputError when the package or the model is missing.
    """

    def __init__(self, path: str | Path | None = None, workers: int = 1, device: str = "cpu"):
        if find_spec("faster_whisper") is None:
            raise InputError("the ear faster_whisper needs faster-whisper: pip install -e '.[faster-whisper]'")
        folder = whisper_tiny() if path is None else Path(path)
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise InputError(f"{folder}: not a Whisper folder of CTranslate2 (it has no {missing[0]})")
        options = {"compute_type": "int8", "cpu_threads": 1, "num_workers": workers, "local_files_only": True}
        try:
            self.model = import_module("faster_whisper").WhisperModel(str(folder), device=device, **options)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{folder}: cannot be opened by faster-whisper: {str(error).splitlines()[0]}") from None
        self.extractor = self.model.feature_extractor
        if (mels := len(self.extractor.mel_filters)) != self.model.model.n_mels:
            raise InputError(
                f"{folder}: the model hears {self.model.model.n_mels} mel bands and its preprocessor_config.json "
                f"gives it {mels}; copy the original's"
            )
        self.workers = workers

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]:
        """See Ear."""
        heard = self._all(waveforms, sample_rate)
        return [" ".join(filter(None, (window.text.strip() for _, window in windows))) for windows in heard]

    def words(self, waveforms: list[np.ndarray], sample_rate: int) -> list[list[Word]]:
        """See Ear. Times come from the cross-attention."""
        heard = self._all(waveforms, sample_rate, word_timestamps=True)
        return [[word for at, window in windows for word in _joined(window.words, at)] for windows in heard]

    def close(self) -> None:
        """Nothing is held open."""

    def _all(self, waveforms: list[np.ndarray], sample_rate: int, **how) -> list[list[tuple]]:
        hear = partial(self._windows, sample_rate, how)
        if self.workers == 1:
            return list(map(hear, waveforms))
        with ThreadPoolExecutor(self.workers) as pool:  # the model leaves Python's lock while it computes
            return list(pool.map(hear, waveforms))

    def _windows(self, sample_rate: int, how: dict, waveform: np.ndarray) -> list[tuple]:
        """[(where the window begins, in seconds, what is heard in it)], without the windows that hold nothing."""
        waveform = resample(waveform, sample_rate, self.extractor.sampling_rate)
        found = []
        for start in range(0, len(waveform), self.extractor.n_samples):
            window = waveform[start : start + self.extractor.n_samples]
            if np.abs(window).max() < SILENCE:
                continue
            segments, _ = self.model.transcribe(window, **_HOW, **how)
            # The first is the whole window's. After it faster-whisper would hear what follows the last word once more.
            segment = next(iter(segments), None)
            if segment is not None and segment.seek == 0:
                found.append((start / self.extractor.sampling_rate, segment))
        return found


def _joined(pieces: Sequence, at: float) -> list[Word]:
    """faster-whisper's pieces of text → words, `at` seconds later; a piece that begins with a space begins a word."""
    words: list[Word] = []
    for piece in pieces:
        text, start, end = piece.word, at + float(piece.start), at + float(piece.end)
        if words and not text.startswith(" "):  # "-six" of "twenty-six"
            words[-1] = Word(words[-1].text + text, words[-1].start, end)
        else:
            words.append(Word(text.strip(), start, end))
    return words
