"""Speaks neutral sentences in every style and encodes them: `python -m starter.make_expressive`.

speak    starter/build/expressive/: a recording of each sentence in one style; what is there already is kept
encode   starter/build/expressive.jsonl and .safetensors: rows and units that the TTS model learns from (not shipped);
         starter/expressive/: rows for post-training and for evaluation, some recordings to calibrate by (shipped)
"""

import argparse
import hashlib
import random
from functools import partial
from pathlib import Path

from elocute.data.audio import load_audio, save_wav
from elocute.data.files import write_atomically
from elocute.data.units import write_units
from elocute.speech.codec import StarterCodec
from starter.make_data import encode_one, run_all, write_rows
from starter.styles import STYLES, sentences, spoken
from starter.takes import SAMPLE_RATE

HERE = Path(__file__).parent
SPLITS = {"base": 7200, "train": 480, "test": 96, "recordings": 36}
"""Rows; no sentence is in two of them, and each split has every style equally often."""


def drawn(seed: int = 0) -> dict[str, list[dict]]:
    """The rows of each split: id, messages, labels."""
    texts, rows = iter(sentences(sum(SPLITS.values()), seed)), {}
    for split, count in SPLITS.items():
        styles = STYLES * (count // len(STYLES))
        random.Random(f"{seed} {split}").shuffle(styles)
        rows[split] = [
            {"id": f"{split}-{n:04}", "messages": [{"role": "user", "content": next(texts)}], "labels": style}
            for n, style in enumerate(styles)
        ]
    return rows


def recording(folder: Path, row: dict) -> Path:
    """Where a row's recording lies: it depends on what is said and how, and on nothing else."""
    said = f"{row['messages'][0]['content']} {row['labels']}"
    return folder / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.wav"


def record(folder: Path, job: tuple[dict]) -> None:
    [row] = job
    save_wav(recording(folder, row), spoken(row["messages"][0]["content"], **row["labels"]), SAMPLE_RATE)


def encode(rows: dict[str, list[dict]], folder: Path, codec: Path, processes: int) -> None:
    """Base and training rows name their recording's units, the rows to calibrate by a sound file."""
    digest = StarterCodec.load(codec).digest
    shipped = HERE / "expressive"
    for split, out in (("base", HERE / "build" / "expressive.jsonl"), ("train", shipped / "train.jsonl")):
        jobs = [(codec, recording(folder, row)) for row in rows[split]]
        units = run_all(encode_one, jobs, processes, f"of {split} encoded")
        named = dict(zip((row["id"] for row in rows[split]), units, strict=True))
        write_units(out.with_suffix(".safetensors"), named, digest, codec="starter")
        store = out.with_suffix(".safetensors").name
        write_rows(out, [row | {"sft_target_audio": f"{store}#{row['id']}"} for row in rows[split]])
    write_rows(shipped / "test.jsonl", rows["test"])
    for row in rows["recordings"]:
        row["sft_target_audio"] = f"audio/{row['id']}.wav"
        save_wav(shipped / row["sft_target_audio"], *load_audio(recording(folder, row)))
    write_rows(shipped / "recordings.jsonl", rows["recordings"])
    texts = sorted({row["messages"][0]["content"].lower().rstrip(".") for row in rows["base"]})
    write_atomically(shipped / "sentences.txt", "".join(f"{text}\n" for text in texts).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("speak", "encode", "all"), default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--codec", type=Path, default=HERE / "codec")
    options = parser.parse_args()
    rows, folder = drawn(), HERE / "build" / "expressive"
    if options.stage in ("speak", "all"):
        spoken_rows = [row for split in reversed(SPLITS) for row in rows[split] if split != "test"]
        missing = [(row,) for row in spoken_rows if not recording(folder, row).exists()]
        print(f"{len(spoken_rows) - len(missing)} of {len(spoken_rows)} sentences are recorded already", flush=True)
        run_all(partial(record, folder), missing, options.processes, "sentences recorded")
    if options.stage in ("encode", "all"):
        encode(rows, folder, options.codec, options.processes)


if __name__ == "__main__":
    main()
