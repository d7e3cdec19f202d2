"""PocketSphinx as an ear: offline, CPU, with its bundled US-English model.

Given the world's sentences it listens with a small bigram language model made from them: any known word may follow
any other, so wrong answers and slips are still heard, but the domain's phrases are likely. Measured on 80 voiced
answers of a closed world at 16 kHz: no vocabulary 19.3 % WER and 225 ms an utterance, a loop over the words 17.0 %,
the bigrams 0.0 % and 51 ms.

What is heard never depends on what was heard before: cepstral means are taken over each utterance alone, and the
decoder starts afresh for each (its Gaussian selection would carry over otherwise, which changed 4 of 240 transcripts).
That costs 6 ms an utterance with a vocabulary and 260 ms without.
"""

import hashlib
import math
import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from elocute.data.audio import resample
from elocute.data.files import cache_folder, write_atomically
from elocute.data.normalise import normalise
from elocute.errors import InputError, RunError
from elocute.rewards.words import Word

if TYPE_CHECKING:
    from pocketsphinx import Decoder

RATE = 16_000  # Hz, what the bundled acoustic model was trained on


class PocketSphinxEar:
    """words: sentences or words of a closed domain, or None for the bundled general language model.

    workers: processes that listen side by side; 1 listens in this process. They start at the first use, by "spawn"
    (safe beside torch's threads), and end with `close()`, with this object, or with this process however it ends.
    Raises InputError naming the words that the bundled dictionary lacks, RunError when what is made of the words cannot
    be kept in `$ELOCUTE_CACHE/ears`.
    """

    def __init__(self, words: Iterable[str] | None = None, workers: int = 1):
        self.workers = workers
        self._options: dict[str, str] = {}
        if words is not None:
            self._options = self._write_model(sorted({s for s in map(normalise, words) if s}))
        self._decoder = None
        self._pool: ProcessPoolExecutor | None = None

    def transcribe(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """What is heard in each waveform (float [samples] in [-1, 1], mono, at `sample_rate` Hz); "" for nothing."""
        return self._all(listen, waveforms, sample_rate)

    def words(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[list[Word]]:
        """The same, word by word, each with its time."""
        return self._all(listen_for_words, waveforms, sample_rate)

    def _all(self, how: Callable, waveforms: Sequence[np.ndarray], rate: int) -> list:
        if self.workers == 1:
            self._decoder = self._decoder or make_decoder(self._options)
            return [how(self._decoder, w, rate) for w in waveforms]
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, spawn, _start_worker, (self._options,))
            weakref.finalize(self, self._pool.shutdown, wait=False)
        chunk = max(1, math.ceil(len(waveforms) / (4 * self.workers)))
        try:
            with _interrupts_held():  # tasks start workers as they are handed in
                heard = self._pool.map(partial(_in_worker, how), waveforms, [rate] * len(waveforms), chunksize=chunk)
            return list(heard)
        except BrokenProcessPool:
            self.close()
            raise RunError("a recogniser process died while listening") from None

    def _write_model(self, sentences: list[str]) -> dict[str, str]:
        if not sentences:
            raise InputError("words: expected at least one word or sentence, found none")
        dictionary = small_dictionary(sentences)
        texts = {"words.dict": dictionary, "model.arpa": bigram_arpa(sentences)}
        # The decoder reads them again for each utterance. Kept by what they say, they are never in anybody's way and
        # few, and a process that is killed leaves nothing else behind.
        folder = cache_folder("ears") / hashlib.sha256("\n".join(texts.values()).encode()).hexdigest()
        try:
            for name, text in texts.items():
                if not (folder / name).exists():
                    write_atomically(folder / name, text.encode())
        except RunError as error:
            raise RunError(f"{error}; ELOCUTE_CACHE may name another folder") from None
        return {"dict": str(folder / "words.dict"), "lm": str(folder / "model.arpa")}

    def close(self) -> None:
        """Ends the worker processes; a later call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def make_decoder(options: Mapping[str, str]) -> "Decoder":
    """A decoder over the bundled acoustic model; `options` may name another `lm` and `dict`."""
    from pocketsphinx import Decoder

    return Decoder(loglevel="FATAL", cmn="batch", **options)


def listen(decoder: "Decoder", waveform: np.ndarray, sample_rate: int) -> str:
    """One utterance. An empty one is silence: ""."""
    heard = _decode(decoder, waveform, sample_rate)
    return heard.hypstr if heard else ""


def listen_for_words(decoder: "Decoder", waveform: np.ndarray, sample_rate: int) -> list[Word]:
    """The words of one utterance, without silences and noises; times to a frame of 10 ms."""
    if not _decode(decoder, waveform, sample_rate):
        return []
    rate = decoder.config["frate"]
    spoken = [segment for segment in decoder.seg() if segment.word[0] not in "<[+"]
    # "read(2)" is the second pronunciation of "read".
    return [Word(re.sub(r"\(\d+\)$", "", s.word), s.start_frame / rate, (s.end_frame + 1) / rate) for s in spoken]


def _decode(decoder: "Decoder", waveform: np.ndarray, sample_rate: int):
    """Pocketsphinx' best hypothesis, None for silence and for an empty utterance."""
    waveform = resample(waveform, sample_rate, RATE)
    if len(waveform) == 0:
        return None
    samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.reinit()
    decoder.start_utt()
    try:
        decoder.process_raw(samples, full_utt=True)
    finally:
        decoder.end_utt()
    return decoder.hyp()


def small_dictionary(sentences: Sequence[str]) -> str:
    """The bundled dictionary's lines, alternative pronunciations included, for the words of `sentences` only."""
    from pocketsphinx import get_model_path

    wanted = {word for s in sentences for word in s.split()}
    lines, found = [], set()
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        for line in file:
            word = line.split(maxsplit=1)[0].split("(")[0]
            if word in wanted:
                lines.append(line)
                found.add(word)
    if missing := sorted(wanted - found):
        raise InputError(f"words: the recogniser's dictionary lacks {', '.join(missing)}")
    return "".join(lines)


def bigram_arpa(sentences: Sequence[str], discount: float = 0.5) -> str:
    """A bigram model in ARPA format: absolute discounting, backing off to unigrams with one added to each count."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        words = ["<s>", *sentence.split(), "</s>"]
        for word, successor in zip(words, words[1:], strict=False):
            follows[word][successor] += 1
    counts = sum(follows.values(), Counter())
    total = counts.total() + len(counts)
    unigram = {word: (count + 1) / total for word, count in counts.items()}
    bigrams = {w: {s: (c - discount) / after.total() for s, c in after.items()} for w, after in follows.items()}

    lines = ["\\data\\", f"ngram 1={len(unigram) + 1}", f"ngram 2={sum(map(len, bigrams.values()))}", "", "\\1-grams:"]
    for word in ["<s>", *sorted(unigram)]:
        log_p = math.log10(unigram[word]) if word in unigram else -99.0
        if word == "</s>":
            lines.append(f"{log_p:.5f} {word}")
            continue
        kept = sum(bigrams[word].values())
        # A word that every other word has followed needs no way back; the floor keeps the logarithm finite.
        rest = max(1 - sum(unigram[s] for s in bigrams[word]), 1e-9)
        lines.append(f"{log_p:.5f} {word} {math.log10((1 - kept) / rest):.5f}")
    lines += ["", "\\2-grams:"]
    lines += [f"{math.log10(p):.5f} {w} {s}" for w in sorted(bigrams) for s, p in sorted(bigrams[w].items())]
    return "\n".join([*lines, "", "\\end\\", ""])


@contextmanager
def _interrupts_held():
    """Processes started inside never see Ctrl-C: it is the parent's to handle, which finishes its step."""
    resource_tracker.ensure_running()  # its own start, were it to happen inside, would let the signal through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker(options: Mapping[str, str]) -> None:
    global _worker_decoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_decoder = make_decoder(options)


def _end_with_parent() -> None:
    # A parent killed by SIGKILL cannot shut its pool down, and the queue's pipe stays open in the other workers.
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _in_worker(how: Callable, waveform: np.ndarray, sample_rate: int) -> Any:
    return how(_worker_decoder, waveform, sample_rate)
