"""`elocute sample`: n answers to each prompt, as candidates (candidates.py) and WAVs.

Answers are made and written a batch of `rollout.prompts_per_step` prompts at a time. A seed is a function of (run seed,
prompt id, sample), and WAVs are written before the line that names them: a folder that was killed and resumed holds
what it would have held.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.files import is_unfinished
from elocute.data.rows import check_rows, each_row
from elocute.data.types import Example
from elocute.errors import InputError, naming
from elocute.models import check_model, check_one_vocabulary, codec_folder, load_model
from elocute.pipelines.candidates import Fields, Row, audio_name, moved, portions
from elocute.pipelines.hire import Crew, hired
from elocute.pipelines.journal import Journal
from elocute.pipelines.tally import SampledTally
from elocute.progress import Progress
from elocute.recipe import Recipe
from elocute.rollout import Rollout, Sampling, check_room, sample_groups, seed_of
from elocute.rollout.vllm import VllmSampler


class CandidateSampler:
    """Samples `n` answers (default: the recipe's group size) to each prompt in `data` into the folder `out`.

    shard "I/N": only the I-th of N equal shares of the rows. workers: on Ray; 0: this process (hire.py).
    """

    def __init__(
        self, recipe: Recipe, data: Path, out: Path, *, n: int | None = None, shard: str = "1/1", workers: int = 0
    ):
        self.recipe, self.data, self.out, self.shard, self.workers = recipe, data, out, shard, workers
        self.n = n or recipe.rollout.group_size

    def check(self, *, resume: bool) -> int:
        """The number of prompts to answer. InputError for bad rows, and for a folder that is not free."""
        rows = 0

        def check(row: Row) -> None:
            nonlocal rows
            rows += 1
            if "output" in row[0]:
                raise InputError(f"{row[1].where}: output: the row has candidates already")

        check_rows(each_row(self.data, self.recipe.data.prompt_seconds), check)
        check_model(self.recipe.model)
        if self.recipe.rollout.vllm:
            check_one_vocabulary(self.recipe.model, "rollout.vllm")
            if self.workers:
                raise InputError("--engine ray: expected without rollout.vllm, whose server does the work")
        self.first, self.end = _share(self.shard, rows)
        self.journal = Journal(self.out / "candidates.jsonl", self._origin())
        self.going_on = self.journal.check(resume=resume)
        if not self.going_on and (foreign := _foreign(self.out, self.journal.path)):
            raise InputError(f"-o {self.out}: expected a new folder or an empty one, it holds {foreign}")
        return self.end - self.first

    def run(self, *, resume: bool = False, progress: Progress = lambda *_: None) -> dict[str, Any]:
        """Do the whole work, or what is left of it; returns the summary."""
        count = self.check(resume=resume)
        with hired(Answerer, (self.recipe, self.data, self.out, self.n), self.workers) as crew:
            return self._answer(crew, count, progress)

    def _answer(self, crew: Crew, count: int, progress: Progress) -> dict[str, Any]:
        batch, tally = self.recipe.rollout.prompts_per_step, SampledTally()
        if not self.going_on:  # every bad prompt is named before the first one is answered
            read = itertools.chain.from_iterable(crew("read", self._batches(0)))
            check_rows(_watched(read, lambda done: progress("read prompts", done, count, {})), _refuse)
        with self.journal.writing(tally.add, whole=batch, end=count) as writer:
            (self.out / "audio").mkdir(exist_ok=True)
            _remove_unfinished(self.out)
            started, tokens, before = time.perf_counter(), 0, writer.lines
            progress("prompts", before, count, {})
            for lines, sampled in crew("answer", self._batches(before)):
                writer.append(lines)
                for line in lines:
                    tally.add(line)
                tokens += sampled
                rate = tokens / (time.perf_counter() - started)
                progress("prompts", writer.lines, count, {"tokens_per_s": rate})
            seconds = time.perf_counter() - started
            _remove_unfinished(self.out)  # of workers that died
        return {"candidates": str(self.journal.path)} | tally.summary() | {
            "prompts_per_s": (count - before) / seconds,
            "tokens_per_s": tokens / seconds,
        }  # fmt: skip

    def _batches(self, done: int) -> Iterator[list[Row]]:
        batch = self.recipe.rollout.prompts_per_step
        return portions(self._rows(done), lambda row: 1, batch, most=batch)

    def _rows(self, done: int) -> Iterator[Row]:
        return itertools.islice(each_row(self.data, self.recipe.data.prompt_seconds), self.first + done, self.end)

    def _origin(self) -> dict[str, Any]:
        recipe = self.recipe
        others = {"group_size", "importance_cap", "off_policy_steps", "vllm"}
        rollout = recipe.rollout.model_dump(mode="json", exclude=others)
        return {
            "made_by": "elocute sample",
            "data": digest_file(self.data),
            "model": digest_folder(recipe.model),
            "codec": digest_folder(codec_folder(recipe.model)),
            "seed": recipe.seed,
            "n": self.n,
            "rollout": rollout | ({"by": "vllm"} if recipe.rollout.vllm else {}),
            "dtype": recipe.dtype,
            "prompt_seconds": recipe.data.prompt_seconds,
            "shard": self.shard,
        }


class Answerer:
    """What answers prompts: the recipe's model. Rows are of the file `data`; WAVs go into the folder `out`."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, n: int):
        self.recipe, self.data, self.out, self.n = recipe, data, out, n
        self.lm = load_model(recipe.model, dtype=getattr(torch, recipe.dtype))
        if torch.cuda.is_available():
            self.lm.model.to("cuda")
        self.audio = EncodedAudio(self.lm.codec, recipe.data.cache)
        self.served: VllmSampler | None = None
        if recipe.rollout.vllm:
            self.served = VllmSampler(recipe.rollout.vllm, recipe.model)
            self.served.stay(recipe.model, digest_folder(recipe.model))

    def read(self, rows: Sequence[Row]) -> list[str | None]:
        """Encode prompts, once for all: what is wrong with each, or None."""
        return [self._problem(row) for row in rows]

    def answer(self, rows: Sequence[Row]) -> tuple[list[Fields], int]:
        """The rows' lines, and how many tokens were sampled for them. Their WAVs are written."""
        groups = self._sample([example for _, example in rows])
        lines = [self._line(row, group) for row, group in zip(rows, groups, strict=True)]
        return lines, sum(len(rollout.tokens) for group in groups for rollout in group)

    def _problem(self, row: Row) -> str | None:
        try:
            self._encode(row)
        except InputError as error:
            return str(error)

    def _encode(self, row: Row) -> None:
        fields, example = row
        theirs, ours = fields.get("units_codec") or self.lm.codec.digest, self.lm.codec.digest
        if theirs != ours:
            raise InputError(
                f"{example.where}: units_codec: the row's units are of codec {theirs}, the model's is {ours}"
            )
        prompt = self.lm.encode_prompt(example, self.audio)
        check_room(self.lm, {example.where: len(prompt)}, self.recipe.rollout.max_new_tokens)
        self.audio.forget()

    def _sample(self, examples: Sequence[Example]) -> list[list[Rollout]]:
        prompts = [self.lm.encode_prompt(example, self.audio) for example in examples]
        self.audio.forget()
        seeds = [[seed_of(self.recipe.seed, "sample", e.id, number) for number in range(self.n)] for e in examples]
        rollout = self.recipe.rollout
        sampling = Sampling(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p)
        return (self.served or sample_groups)(self.lm, prompts, seeds, sampling)

    def _line(self, row: Row, group: Sequence[Rollout]) -> Fields:
        fields, example = row
        with naming(f"{example.where}: its answers"):
            output = {str(k): self._candidate(example, k, rollout) for k, rollout in enumerate(group)}
        named = {"id": example.id, "units_codec": self.lm.codec.digest, "output": output}
        return moved(fields, self.data.parent, self.out) | named

    def _candidate(self, example: Example, number: int, rollout: Rollout) -> Fields:
        utterance = self.lm.answer(example, rollout.tokens.ids).utterance
        broken, audio = utterance.broken, None
        if not np.isfinite(utterance.waveform).all():
            broken = broken or "the audio has values that are not finite"
        elif len(utterance.waveform):
            audio = audio_name(example.id, number)
            save_wav(self.out / audio, utterance.waveform, utterance.sample_rate)
        return {
            "output-text": utterance.text,
            "output-audio": audio,
            "output-units": self.lm.layout.read(rollout.tokens.ids).units,
            "output-tokens": rollout.tokens.ids.tolist(),
            "seed": rollout.seed,
            "broken": broken,
            **({"cut": True} if rollout.truncated and not broken else {}),
            "seconds": utterance.seconds,
        }


def _share(shard: str, rows: int) -> tuple[int, int]:
    """Where a share of the rows begins and ends."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= of:
        raise InputError(f"--shard {shard}: expected I/N with 1 ≤ I ≤ N, for example 2/8")
    return rows * (index - 1) // of, rows * index // of


def _watched(problems: Iterator[str | None], seen: Callable[[int], None]) -> Iterator[str | None]:
    for done, problem in enumerate(problems, start=1):
        yield problem
        seen(done)


def _refuse(problem: str | None) -> None:
    if problem:
        raise InputError(problem)


def _foreign(folder: Path, candidates: Path) -> str | None:
    """The name of something in the folder that no killed `sample` left there."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "a file"
    return next((p.name for p in sorted(folder.iterdir()) if p != candidates and not is_unfinished(p)), None)


def _remove_unfinished(out: Path) -> None:
    for folder in (out, out / "audio"):
        for path in filter(is_unfinished, folder.iterdir()):
            path.unlink()
