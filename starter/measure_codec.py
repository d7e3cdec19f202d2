"""Measures the starter codec on held-out sentences: words, pitch, loudness, size and speed."""

import json
import math
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import jiwer
import numpy as np

from elocute.prosody.pitch import f0_track
from elocute.speech import features
from elocute.speech.codec import StarterCodec
from starter.codec_corpus import Line, held_out_lines, spoken
from starter.sentences import sentences
from starter.voices import voice_named

_LANGUAGE_SENTENCES = 4000


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def bigram_arpa(texts: list[str]) -> str:
    """A Witten-Bell bigram language model in ARPA format."""
    pairs, starts, vocabulary = Counter(), Counter(), Counter()
    for text in texts:
        row = ["<s>", *words(text).split(), "</s>"]
        pairs.update(zip(row, row[1:], strict=False))
        starts.update(row[:-1])
        vocabulary.update(row)
    followers = Counter(first for first, _ in pairs)
    seen, kinds = sum(vocabulary.values()), len(vocabulary)
    unigram = {word: (count + 1) / (seen + kinds) for word, count in vocabulary.items()}
    seen_mass = Counter()
    for first, second in pairs:
        seen_mass[first] += unigram[second]
    lines = ["\\data\\", f"ngram 1={kinds}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for word in sorted(vocabulary):
        own = -99.0 if word == "<s>" else math.log10(unigram[word])
        total = starts[word] + followers[word]
        left = (followers[word] / total) / max(1 - seen_mass[word], 1e-6) if total else 1.0
        lines.append(f"{own:.4f} {word} {math.log10(left):.4f}")
    lines += ["", "\\2-grams:"]
    for first, second in sorted(pairs):
        total = starts[first] + followers[first]
        chance = (pairs[first, second] + followers[first] * unigram[second]) / total
        lines.append(f"{math.log10(chance):.4f} {first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])


class Listener:
    """PocketSphinx, bundled acoustic model, with a bigram of template sentences (not those it will hear)."""

    def __init__(self, seed: int):
        from pocketsphinx import Decoder

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "bigram.arpa"
            model.write_text(bigram_arpa(sentences(_LANGUAGE_SENTENCES, seed + 100)), encoding="utf-8")
            self.recogniser = Decoder(lm=str(model), loglevel="FATAL", samprate=float(features.SAMPLE_RATE))

    def hear(self, waveform: np.ndarray) -> str:
        """float32 [samples] at 16 kHz → words."""
        silence = np.zeros(features.SAMPLE_RATE // 5, dtype=np.float32)  # the recogniser wants a little silence around
        sound = np.concatenate([silence, waveform, silence])
        self.recogniser.start_utt()
        self.recogniser.process_raw((sound * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.recogniser.end_utt()
        said = self.recogniser.hyp()
        return said.hypstr if said else ""


def measure_codec(codec: StarterCodec, folder: Path, seed: int) -> dict:
    """Measures, prints and writes metrics.json into the codec's folder."""
    lines = held_out_lines(seed)
    found = {
        "units_per_second": codec.units_per_second,
        "units": codec.n_units,
        "bytes": sum(path.stat().st_size for path in Path(folder).glob("codec.*")),
        **measure_words_and_sound(codec, lines, Listener(seed)),
        "raised_voice": measure_raised_voice(codec, lines[:10]),
    }
    for name, value in found.items():
        print(f"{name:24} {value}")
    (Path(folder) / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def measure_words_and_sound(codec: StarterCodec, lines: list[Line], listener: Listener) -> dict:
    texts = [words(line.text) for line in lines]
    originals = [features.whole_blocks(line.waveform) for line in lines]
    begin = time.perf_counter()
    units = [codec.encode(line.waveform, codec.sample_rate) for line in lines]
    encoded = time.perf_counter()
    made = [codec.decode(row) for row in units]
    decoded = time.perf_counter()
    seconds = sum(map(len, made)) / codec.sample_rate
    return {
        "sentences": len(lines),
        "wer_original": round(jiwer.wer(texts, [listener.hear(line.waveform) for line in lines]), 4),
        "wer_resynthesis": round(jiwer.wer(texts, [listener.hear(waveform) for waveform in made]), 4),
        **compare_pitch(originals, made),
        "loudness_change_db": round(float(np.mean(list(map(level, made))) - np.mean(list(map(level, originals)))), 2),
        "energy_correlation": round(_correlation(_block_levels(originals), _block_levels(made)), 3),
        "clipped_samples": int(sum((np.abs(waveform) >= 1.0).sum() for waveform in made)),
        "units_used": len(np.unique(np.concatenate(units))),
        "encode_times_real_time": round(seconds / (encoded - begin), 1),
        "decode_times_real_time": round(seconds / (decoded - encoded), 1),
    }


def compare_pitch(originals: list[np.ndarray], made: list[np.ndarray]) -> dict:
    """Correlation of ln F0 where both are voiced, over all frames and as the median of the single sentences'."""
    tracks = [(_pitch(a), _pitch(b)) for a, b in zip(originals, made, strict=True)]
    both = [((a > 0) & (b > 0)) for a, b in tracks]
    logs = [(np.log(a[v]), np.log(b[v])) for (a, b), v in zip(tracks, both, strict=True)]
    first, second = (np.concatenate(side) for side in zip(*logs, strict=True))
    return {
        "f0_correlation": round(_correlation(first, second), 4),
        "f0_correlation_sentence": round(float(np.median([_correlation(a, b) for a, b in logs if len(a) > 20])), 4),
        "voicing_agreement": round(float(np.mean(np.concatenate([(a > 0) == (b > 0) for a, b in tracks]))), 4),
    }


def measure_raised_voice(codec: StarterCodec, lines: list[Line]) -> dict:
    """Median F0 of each line spoken with pitch 1.25 (and 0.85) over its plain F0: before and after the codec."""
    found = {}
    for factor in (1.25, 0.85):
        before, after = [], []
        for line in lines:
            changed = spoken(line.text, voice_named(line.voice), 1.0, factor).waveform
            before.append(_median_pitch(changed) / _median_pitch(line.waveform))
            resynthesised = [codec.decode(codec.encode(w, codec.sample_rate)) for w in (changed, line.waveform)]
            after.append(_median_pitch(resynthesised[0]) / _median_pitch(resynthesised[1]))
        found[str(factor)] = {"before": round(float(np.mean(before)), 3), "after": round(float(np.mean(after)), 3)}
    return found


def level(waveform: np.ndarray) -> float:
    """dB relative to full scale: 0 is the loudest, silence is −100."""
    return 10 * math.log10(float(np.mean(np.square(waveform, dtype=np.float64))) + 1e-10)


def _block_levels(waveforms: list[np.ndarray]) -> np.ndarray:
    return np.array([level(block) for w in waveforms for block in w.reshape(-1, features.BLOCK)])


def _pitch(waveform: np.ndarray) -> np.ndarray:
    return f0_track(waveform, features.SAMPLE_RATE, features.HOP)


def _median_pitch(waveform: np.ndarray) -> float:
    f0 = _pitch(waveform)
    return float(np.median(f0[f0 > 0]))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])
