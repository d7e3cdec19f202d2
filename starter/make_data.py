"""Speaks the starter world and encodes it: `python -m starter.make_data`, or one stage of it.

draw     starter/vocabulary.txt (every word) and starter/answers.txt (all that may be answered); no audio
speak    every question and answer → starter/build/speech/<voice>/<text>.wav; what is there already is kept
encode   those → units by the codec in starter/codec; shipped: starter/data and starter/audio,
         not shipped: starter/build/base.jsonl with its questions' units, and base_written.jsonl
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from elocute.data.audio import load_audio, save_wav
from elocute.data.files import write_atomically
from elocute.data.units import write_units
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.speech.codec import StarterCodec
from starter.questions import ROWS, WRONG_FACTOR, Row, Style, answer_key, draw_rows, draw_voiced, draw_written
from starter.takes import SAMPLE_RATE, best_take, close_cut
from starter.voices import speak, voice_named
from starter.world import SPLITS, build_items, vocabulary

HERE = Path(__file__).parent
SHOWN_WAVS = 12  # held-out questions that also ship as sound files, with their answers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("draw", "speak", "encode", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--codec", type=Path, default=HERE / "codec")
    parser.add_argument("--out", type=Path, default=HERE, help="where data/, audio/, build/ and the word lists go")
    parser.add_argument("--wrong", type=json.loads, default={}, metavar="JSON",
                        help='factors on the teacher\'s error rates, such as {"base": 1.1, "train": 0.9}')  # fmt: skip
    options = parser.parse_args(arguments)

    rows = draw_rows(options.seed, options.wrong)
    rows["written"] = draw_written(options.seed, wrong_factor=options.wrong.get("base", WRONG_FACTOR["base"]))
    rows["base"] += draw_voiced(options.seed, rows["written"])
    speech = options.out / "build" / "speech"
    if options.stage in ("draw", "all"):
        for name, texts in (("vocabulary", vocabulary(build_items())), ("answers", answer_texts())):
            write_atomically(options.out / f"{name}.txt", "".join(f"{text}\n" for text in texts).encode())
    if options.stage in ("speak", "all"):
        speak_answers(speech, options.codec)
        speak_questions(rows, speech, options.processes)
    if options.stage in ("encode", "all"):
        encode_all(rows, speech, options.codec, options.out, options.processes)


# ---- speak -----------------------------------------------------------------------------------------------------------


def wav_path(folder: Path, text: str, style: Style) -> Path:
    return folder / str(style) / f"{answer_key(text)}.wav"


def answer_path(folder: Path, text: str) -> Path:
    return folder / "answers" / f"{answer_key(text)}.wav"


def answer_texts() -> list[str]:
    """Everything the teacher may say, right or wrong."""
    return sorted({text for item in build_items() for text in (item.answer, *item.mistakes)})


def speak_questions(rows: dict[str, list[Row]], folder: Path, processes: int) -> None:
    """Speak what is not spoken yet. A run that was stopped goes on where it stopped."""
    # Shipped splits first: base training is the long part.
    wanted = [(row.item.question, row.style) for split in ("heldout", "train", "base") for row in rows[split]]
    missing = [(wav_path(folder, *each), *each) for each in wanted if not wav_path(folder, *each).exists()]
    print(f"speak: {len(wanted) - len(missing)} of {len(wanted)} questions are there already")
    run_all(speak_question, missing, processes, "questions spoken")


def speak_question(job: tuple[Path, str, Style]) -> None:
    path, text, style = job
    save_wav(path, close_cut(*speak(text, voice_named(style.voice), rate=style.rate)), SAMPLE_RATE)


def speak_answers(folder: Path, codec: Path) -> None:
    texts = answer_texts()
    ear, codec = PocketSphinxEar(texts), StarterCodec.load(codec)
    missing = [text for text in texts if not answer_path(folder, text).exists()]
    for text in missing:
        waveform, understood = best_take(text, ear, codec)
        save_wav(answer_path(folder, text), waveform, SAMPLE_RATE)
        if not understood:
            print(f"answer {text!r}: no take was heard right in every way; the best one is used")
    print(f"speak: {len(missing)} of {len(texts)} answers spoken")


# ---- encode ----------------------------------------------------------------------------------------------------------


def encode_all(rows: dict[str, list[Row]], speech: Path, codec: Path, out: Path, processes: int) -> None:
    """Write the rows and their units. Every unit is made anew: a codec that was trained again means other numbers."""
    digest = StarterCodec.load(codec).digest
    answers = {answer_key(text): answer_path(speech, text) for text in answer_texts()}
    questions = {
        split: {row.id: wav_path(speech, row.item.question, row.style) for row in rows[split]} for split in SPLITS
    }
    stores = {
        out / "data" / "answers.safetensors": answers,
        out / "data" / "questions.safetensors": questions["train"] | questions["heldout"],
        out / "build" / "base_questions.safetensors": questions["base"],
    }
    for store, wavs in stores.items():
        jobs = [(codec, path) for path in wavs.values()]
        units = dict(zip(wavs, run_all(encode_one, jobs, processes, "encoded"), strict=True))
        write_units(store, units, digest, codec="starter")
        report_store(store, units, wavs)
    for split in ("train", "heldout"):
        write_rows(
            out / "data" / f"{split}.jsonl",
            [row.as_json("questions.safetensors", "answers.safetensors") for row in rows[split]],
        )
    for split, name in (("base", "base"), ("written", "base_written")):
        write_rows(
            out / "build" / f"{name}.jsonl",
            [row.as_json("base_questions.safetensors", "../data/answers.safetensors") for row in rows[split]],
        )
    ship_wavs(rows["heldout"], speech, out)


def encode_one(job: tuple[Path, Path]) -> np.ndarray:
    codec, path = job
    return loaded_codec(codec).encode(*load_audio(path))


@cache
def loaded_codec(folder: Path) -> StarterCodec:
    return StarterCodec.load(folder)


def ship_wavs(heldout: list[Row], speech: Path, out: Path) -> None:
    """Some held-out questions as sound files, categories in turn, and rows that name the files."""
    queues = {category: [row for row in heldout if row.item.category == category] for category in ROWS}
    shown = [queues[category][turn] for turn in range(2) for category in ROWS][:SHOWN_WAVS]
    written = []
    for row in shown:
        question, answer = f"audio/{row.id}.question.wav", f"audio/{row.id}.answer.wav"
        save_wav(out / question, *load_audio(wav_path(speech, row.item.question, row.style)))
        save_wav(out / answer, *load_audio(answer_path(speech, row.target)))
        written.append(row.as_json("", "") | {"audios": [f"../{question}"], "sft_target_audio": f"../{answer}"})
    write_rows(out / "data" / "wavs.jsonl", written)


def write_rows(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def report_store(store: Path, units: dict[str, np.ndarray], wavs: dict[str, Path]) -> None:
    seconds = sum(wav.stat().st_size - 44 for wav in wavs.values()) / (2 * SAMPLE_RATE)
    print(
        f"{store}: {len(units)} recordings, {seconds:.0f} s, {mean(len(each) for each in units.values()):.1f} units "
        f"on average (longest {max(map(len, units.values()))}), {store.stat().st_size / 1e6:.2f} MB"
    )


def run_all(work: Callable, jobs: list[tuple], processes: int, done: str) -> list:
    """`work` on every job, in order, in several processes, with a line of progress now and then."""
    results: list = []
    # "spawn": a fork beside torch's threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for result in pool.map(work, jobs, chunksize=16):
            results.append(result)
            if len(results) % 500 == 0 or len(results) == len(jobs):
                print(f"{len(results)}/{len(jobs)} {done}", flush=True)
    return results


if __name__ == "__main__":
    main()
