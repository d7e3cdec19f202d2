"""The ears that need no network, on recordings: how many words they mishear, and what an utterance costs.

    python -m benchmarks.ears

Needs the extra `faster-whisper`, and the story sentences that `make starter` records (starter/build/sentences). Writes
benchmarks/results/ears.json and the table in the docs.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

import jiwer
import numpy as np

from benchmarks.tables import provenance, write_table
from elocute.data.audio import load_audio
from elocute.data.normalise import normalise
from elocute.data.rows import read_rows
from elocute.evaluation.statistics import bootstrap_ratio
from elocute.rewards.asr import Ear, FasterWhisperEar, PocketSphinxEar
from starter.make_stories import drawn
from starter.stories import sentences_of
from starter.telling import recording

RESULT = Path("benchmarks/results/ears.json")
PAGE = Path("docs/own-reward.md")
SENTENCES, SEED, RATE = 60, 0, 16_000
EARS: dict[str, Callable[[], Ear]] = {
    "PocketSphinx, open vocabulary": PocketSphinxEar,
    "Whisper tiny.en by faster-whisper": FasterWhisperEar,
}
LABELS = {"questions": "questions", "answers": "answers of one or two words", "sentences": "sentences of stories"}
Spoken = Sequence[tuple[str, np.ndarray]]


def spoken() -> dict[str, Spoken]:
    """(text, waveform at RATE) of the starter's questions and answers that ship as sound files, and of sentences."""
    rows = read_rows(Path("starter/data/wavs.jsonl"))
    texts = sentences_of(drawn()["test"])
    chosen = Random(SEED).sample([text for text in texts if recording(text).exists()], SENTENCES)
    return {
        "questions": [(row.question_text, load_audio(row.audios[-1].path)[0]) for row in rows],
        "answers": [(row.target_text, load_audio(row.target_audio.path)[0]) for row in rows],
        "sentences": [(text, load_audio(recording(text))[0]) for text in chosen],
    }


def wordless() -> list[np.ndarray]:
    """Sound without a word: white noise of three loudnesses and lengths, hum, and digital silence."""
    draw = np.random.default_rng(SEED)
    noise = [
        loud * draw.standard_normal(RATE * seconds) for loud in (1e-3, 1e-2, 1e-1) for seconds in (1, 3, 10)
    ]  # fmt: skip
    hum = [0.1 * np.sin(2 * np.pi * hertz * np.arange(3 * RATE) / RATE) for hertz in (50, 440)]
    return [sound.astype(np.float32) for sound in (*noise, *hum, np.zeros(20 * RATE))]


def measured(ear: Ear, recordings: Spoken) -> dict:
    """Corpus WER with its interval, and CPU seconds an utterance."""
    waveforms = [waveform for _, waveform in recordings]
    started = time.process_time()
    heard = ear.transcribe(waveforms, RATE)
    seconds = time.process_time() - started
    pairs = [(normalise(text), normalise(said)) for (text, _), said in zip(recordings, heard, strict=True)]
    counts = [jiwer.process_words(*pair) for pair in pairs]
    errors = [c.substitutions + c.deletions + c.insertions for c in counts]
    rate, low, high = bootstrap_ratio(errors, [len(text.split()) for text, _ in pairs], SEED)
    return {
        "wer": rate,
        "ci95": [low, high],
        "all_right": sum(not wrong for wrong in errors),
        "n": len(recordings),
        "mean_seconds": float(np.mean([len(waveform) for waveform in waveforms])) / RATE,
        "cpu_seconds": seconds / len(recordings),
        "misheard": [pair for pair, wrong in zip(pairs, errors, strict=True) if wrong],
    }


def markdown(values: dict) -> str:
    """The table for people."""
    ears = values["ears"]
    lines = [
        "| recordings | " + " | ".join(f"{name}: WER | CPU s" for name in ears) + " |",
        "|---" * (1 + 2 * len(ears)) + "|",
    ]
    for kind, label in LABELS.items():
        found = [of[kind] for of in ears.values()]
        cells = [f"{_percent(one)} | {one['cpu_seconds']:.2f}" for one in found]
        lines.append(f"| {found[0]['n']} {label}, {found[0]['mean_seconds']:.1f} s | " + " | ".join(cells) + " |")
    made_up = " | ".join(f"words in {of['wordless']} | –" for of in ears.values())
    lines.append(f"| {values['wordless']} of noise, hum or silence | {made_up} |")
    lines += [
        "",
        f"`{values['command']}` on {values['machine']}, {values['date']}, load average {values['load_average']:.0f}. "
        "WER in percent with its 95 %",
        "interval over recordings, CPU seconds an utterance. The voices are the starter's, which are synthetic.",
    ]
    return "\n".join(lines)


def _percent(found: dict) -> str:
    low, high = found["ci95"]
    return f"{100 * found['wer']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    args = parser.parse_args()
    if not args.table:
        recordings, silent = spoken(), wordless()
        values = provenance("benchmarks.ears") | {"seeds": [SEED], "wordless": len(silent), "ears": {}}
        values["load_average"] = os.getloadavg()[2]  # a busy machine's CPU seconds are longer
        values["versions"] |= {name: version(name) for name in ("pocketsphinx", "faster-whisper", "ctranslate2")}
        for name, opened in EARS.items():
            ear = opened()
            ear.transcribe([recordings["answers"][0][1]], RATE)  # what is done once
            found = {kind: measured(ear, of) for kind, of in recordings.items()}
            values["ears"][name] = found | {"wordless": sum(map(bool, ear.transcribe(silent, RATE)))}
        RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("ears", markdown(json.loads(RESULT.read_text())), PAGE)


if __name__ == "__main__":
    main()
