"""Audio to units, units to sound, sound to text: each as elocute does it, against one by one.

    python -m benchmarks.audio                                                     # some minutes
    python -m benchmarks.audio --files 2 --answers 4 --seconds 0.4 --rounds 1 --output seen.json

- encode: the starter's sound files, each asked for `--uses` times as a training does, through the cache and by encoding
  at every use, as the released WavAlign code does. Codec: the starter's.
- decode: answers in Mimi's codes, `--seconds` long or down to half of it, together and by MimiModel one by one.
  Weights are random, of the published size.
- listen: the starter's questions by PocketSphinx with its open vocabulary, in `--workers` processes, which are started
  before, and in this process one after the other.

All must give the same: units and texts exactly, sounds within 1e-4. The middle of `--rounds`, by the clock on the wall.
Writes benchmarks/results/audio.json and the table in docs/performance.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import MimiConfig, MimiModel

from benchmarks.tables import provenance, write_table
from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.speech.codec import StarterCodec
from elocute.speech.mimi import MimiCodec

RESULT = Path("benchmarks/results/audio.json")
PAGE = Path("docs/performance.md")
ROWS = Path("starter/data/wavs.jsonl")
RATE = 16_000
Work = tuple[str, str, Callable[[], list], Callable[[], list]]
"""What is done, the peer, how elocute does it, how the peer does."""


def encoding(files: int, uses: int) -> Work:
    codec = StarterCodec.load("starter/codec")
    refs = [row.audios[-1] for row in read_rows(ROWS)][:files]

    def ours() -> list:
        with tempfile.TemporaryDirectory() as folder:
            audio = EncodedAudio(codec, folder)
            return [audio.units(ref) for _ in range(uses) for ref in refs]

    def theirs() -> list:
        return [codec.encode(*load_audio(ref.path)) for _ in range(uses) for ref in refs]

    return f"encode {len(refs)} files, each used {uses} times", "encoded at every use", ours, theirs


def decoding(answers: int, seconds: float, seed: int = 0) -> Work:
    torch.manual_seed(seed)
    draw, codec = np.random.default_rng(seed), MimiCodec(MimiModel(MimiConfig()), 8)
    longest = max(2, int(seconds * codec.model.config.frame_rate))
    frames = draw.integers(longest // 2, longest + 1, answers)
    codes = [draw.integers(0, codec.n_units, (count, codec.codebooks)) for count in frames]

    @torch.inference_mode()
    def theirs() -> list:
        given = (torch.from_numpy(one.T.copy())[None].to(codec.device) for one in codes)
        return [codec.model.decode(one).audio_values[0, 0].clamp(-1, 1).cpu().numpy() for one in given]

    how = f"decode {answers} answers of {longest // 2 / 12.5:.1f} to {longest / 12.5:.1f} s, Mimi"
    return how, "MimiModel.decode, one by one", lambda: codec.decode_batch(codes), theirs


def listening(files: int, workers: int) -> Work:
    waveforms = [load_audio(row.audios[-1].path)[0] for row in read_rows(ROWS)][:files]
    several, one = PocketSphinxEar(workers=workers), PocketSphinxEar()
    for ear in (several, one):
        ear.transcribe(waveforms[:workers], RATE)  # starts the processes, opens the models
    return (
        f"listen to {len(waveforms)} recordings, PocketSphinx, {workers} processes",
        "one by one in this process",
        lambda: several.transcribe(waveforms, RATE),
        lambda: one.transcribe(waveforms, RATE),
    )


def same(ours: list, theirs: list) -> bool:
    if isinstance(ours[0], str):
        return ours == theirs
    return all(np.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def compare(work: Work, rounds: int) -> dict:
    name, peer, *hows = work
    found: list[list[float]] = [[], []]
    for _ in range(rounds):
        made = []
        for how, seconds in zip(hows, found, strict=True):
            began = time.perf_counter()
            made.append(how())
            seconds.append(time.perf_counter() - began)
        if not same(*made):
            raise SystemExit(f"{name}: not the same")
        print(f"{name}: {found[0][-1]:.2f} s, {peer}: {found[1][-1]:.2f} s", file=sys.stderr)
    ours, theirs = map(statistics.median, found)
    return {"work": name, "peer": peer, "ours_s": ours, "theirs_s": theirs, "ratio": theirs / ours, "n": rounds}


def markdown(result: dict) -> str:
    """The rows as a table."""
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}, {result['threads']} threads; seconds, the "
        f"middle of {result['rows'][0]['n']}:",
        "",
        "| work | elocute | peer | peer's | times as fast |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['work']} | {row['ours_s']:.2f} | {row['peer']} | {row['theirs_s']:.2f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12, help="of those that the starter ships")
    parser.add_argument("--uses", type=int, default=5)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    works = [
        encoding(args.files, args.uses),
        decoding(args.answers, args.seconds),
        listening(args.files, args.workers),
    ]
    rows = [compare(work, args.rounds) for work in works]
    for row in rows:
        print(f"{row['work']}: {row['ratio']:.2f} times as fast as {row['peer']}")
    result = provenance("benchmarks.audio") | {"threads": torch.get_num_threads(), "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    if args.output == RESULT:
        write_table("audio", markdown(result), PAGE)


if __name__ == "__main__":
    main()
