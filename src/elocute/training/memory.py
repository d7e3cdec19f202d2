"""What a run needs of memory, reckoned before a weight is loaded.

A process needs most at one of these moments; the highest counts:

    rollout, evaluation    weights, AdamW's two moments, the reference's copy, keys and values, a step's logits
    update                 the same, gradients, a pass's activations, the head's new gradient
    backward's end         the same, of several passes the gradients so far and the last one's
    step                   the same, gradients, the optimiser's scratch
    checkpoint             where processes divide something, on a CPU: weights and moments again, whole
    saving                 with LoRA: the weights again, merged; where processes divide weights: the weights again
    loading                where they divide layers (training/share.py): the weights and the reference, before that

What is not known before it is loaded is left out or taken at its least: codec and judges, prompts and recorded answers.
An estimate above what there is says that the run cannot fit; one a little below says not that it will.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import NamedTuple

import soundfile

from elocute.data.types import AudioRef, Example
from elocute.data.units import UnitStore
from elocute.errors import InputError
from elocute.models.sizes import Shape, Sizes
from elocute.recipe.schema import Dpo, Fixed, Recipe
from elocute.training.machine import GIB, Machine
from elocute.training.passes import Limits
from elocute.training.share import divides_layers, shares_prompts
from elocute.training.zero import BUCKET

FLOAT = 4
_DRAWING = 28
"""Bytes for each row and word of the vocabulary while a step is drawn (`draw` of rollout/sampler.py)."""
_TILES = 16 << 20
"""Logits of the log-probs (objectives/logprobs.py)."""
_NORMS = 4
"""Times the width that a layer's two norms keep in float32, whatever the dtype."""
_ENDS = 8
"""Times the width that each cell is kept at the trunk's end: what goes into the last norm and what comes out of it, the
states joined and selected, and in the log-probs what they expect; and the gradients of these."""
_LIBRARIES = 64 << 20
"""What the smallest network's run takes of main memory: code that is loaded when it is first run, a codec."""
_MAPPED = 32 << 20
"""Blocks larger than that glibc gives back one by one. Smaller ones lie in its heap, where those that are freed between
what is kept leave holes into which the next, of another size, do not fit."""
_ROWS = 64
"""Whose lengths are looked at."""
_CHARACTERS, _UNITS = 4, 12.5
"""A token of text; a second, by the slowest codec here."""


@dataclass(frozen=True)
class Lengths:
    """What rows say: steps of the longest prompt and of the longest answer to learn; how many rows are evaluated, a
    batch of them at most."""

    prompt: int = 0
    answer: int = 0
    evaluated: int = 0


@dataclass(frozen=True)
class Need:
    """What a process needs at its highest moment: bytes by what they are for."""

    moment: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        """In GiB; parts of less than a hundredth are not named."""
        parts = [f"{name} {value / GIB:.3g}" for name, value in self.parts.items() if value >= 0.01 * self.bytes]
        return f"{self.bytes / GIB:.3g} GiB ({self.moment}: {', '.join(parts)})"


def reckon(recipe: Recipe, sizes: Sizes, lengths: Lengths, machine: Machine) -> Need:
    """What a process of the run needs at its highest moment."""
    trained = trained_numbers(recipe, sizes)
    stored = FLOAT if recipe.lora is None else _width(recipe)
    weights = stored * sizes.weights + (FLOAT * trained if recipe.lora else 0)
    reference = stored * sizes.weights if recipe.objective.uses_reference and recipe.lora is None else 0
    parts = 1 if machine.shared == "copies" else machine.processes  # of the optimiser's work
    layers = parts if divides_layers(machine.shared) else 1
    standing = {"weights": weights // layers, "reference": reference // layers, "AdamW": 2 * FLOAT * trained // parts}
    if parts > layers or machine.shared == "zero3":
        standing["parts of weights"] = FLOAT * trained // parts
    if machine.shared == "zero3":
        standing |= {"gradients": FLOAT * trained // parts, "exchange": FLOAT * min(BUCKET, trained)}
    if not machine.gpu:
        standing["libraries"] = _LIBRARIES
    # Autocast copies what is trained, for as long as a forward pass lasts; the backward pass keeps some of it longer.
    copied = {"weights in bfloat16": 2 * trained if _width(recipe) < stored else 0}
    gradients = FLOAT * trained * (2 if machine.processes > 1 else 1)  # what exchanges them has them again
    passing = sampling = standing | copied
    if layers > 1:
        gradients = FLOAT * trained // parts
        passing = passing | {"whole layers": int(_whole_at_a_time(sizes) * (weights + FLOAT * trained))}
        sampling = sampling | {"whole weights": weights}
    several = layers > 1 or sum(job.passes for job in _jobs(recipe, lengths, machine)) > 1
    added = gradients if several else 0
    # Where torch has no operation for all weights at once it is a weight after the other, and twice the largest; to
    # DeepSpeed a process's part is one weight.
    largest = trained // parts if machine.shared.startswith("zero") else min(trained, prod(sizes.vocabulary))
    scratch = FLOAT * trained // parts if machine.gpu else 2 * FLOAT * largest
    moments = {
        "step": standing | {"gradients": gradients, "scratch": scratch},
        "update": passing | {"gradients": added} | _update(recipe, sizes, lengths, machine),
        # A weight's gradient is added once it is whole, and a part of it, if 0, comes last (`Policy.forward`); a
        # layer's is divided at once.
        "backward's end": passing | {"gradients": added + (FLOAT * trained if layers == 1 else 0)},
    }
    if lengths.evaluated:
        rows = min(recipe.evaluation.batch, lengths.evaluated)
        moments["evaluation"] = sampling | _sampling(recipe, sizes, lengths, rows, 1)
    if recipe.objective.samples and recipe.rollout.vllm is None:  # a server's memory is its own
        prompts = _prompts(recipe, machine)
        moments["rollout"] = sampling | _sampling(recipe, sizes, lengths, prompts, _group(recipe))
    again = weights if parts > 1 and machine.shared != "zero2" else 0
    if recipe.lora or again:
        merged = stored * sizes.weights if recipe.lora else 0
        moments["saving"] = standing | {"merged weights": merged, "weights again": again}
    if parts > 1 and not machine.gpu:  # the first process writes them
        gathered = weights if machine.shared == "zero3" else 0
        moments["checkpoint"] = standing | {"whole weights": gathered, "whole checkpoint": 3 * FLOAT * trained}
    if layers > 1:
        moments["loading"] = {"weights": weights, "reference": reference}
    needs = [Need(name, {part: value for part, value in parts.items() if value}) for name, parts in moments.items()]
    return max(needs, key=lambda need: need.bytes)


def trained_numbers(recipe: Recipe, sizes: Sizes) -> int:
    """How many numbers are trained: LoRA's, or all that are not frozen."""
    trained = _trained(recipe, sizes)
    return recipe.lora.rank * sum(map(sum, trained.values())) if recipe.lora else Sizes(trained).weights


def _trained(recipe: Recipe, sizes: Sizes) -> dict[str, Shape]:
    """Weights that are trained, with LoRA those that have an adapter."""
    if recipe.lora is None:
        return {n: shape for n, shape in sizes.shapes.items() if not any(p.search(n) for p in recipe.freeze)}
    targets = set(recipe.lora.targets)
    return {n: shape for n, shape in sizes.shapes.items() if len(shape) == 2 and targets & set(n.split("."))}


def lengths_of(recipe: Recipe, examples: Sequence[Example]) -> Lengths:
    """The longest of some rows, evenly spread."""
    rows, stores = examples[:: max(1, -(-len(examples) // _ROWS))], {}
    prompts, answers, evaluated = [0], [0], 0
    for row in rows:
        heard = sum(_units(ref, stores) for ref in row.audios)
        prompts.append(heard + sum(_words(message.content) for message in row.messages))
        answers.append(_words(row.target_text) + _units(row.target_audio, stores))
        answers.append(_words(row.rejected_text) + _units(row.rejected_audio, stores))
    if recipe.data.eval:
        with recipe.data.eval.open("rb") as file:
            evaluated = sum(1 for _ in islice(file, min(recipe.evaluation.batch, recipe.evaluation.rows or 1 << 60)))
    return Lengths(max(prompts), max(answers), evaluated)


def _whole_at_a_time(sizes: Sizes) -> float:
    """The share of the weights that passes have whole where layers are divided: what is in none, and two layers."""
    return 1 - sizes.in_layers / sizes.weights * max(0, 1 - 2 / max(1, sizes.layers))


def _width(recipe: Recipe) -> int:
    """Bytes of a number of the computation."""
    return 2 if recipe.dtype == "bfloat16" else FLOAT


def _sampling(recipe: Recipe, sizes: Sizes, lengths: Lengths, prompts: int, group: int) -> dict[str, int]:
    """Of `group` answers to each prompt. Lean decoding keeps a prompt once for them, any other for each."""
    rows, lean = prompts * group, sizes.lean and _width(recipe) == FLOAT
    steps = (prompts if lean else rows) * lengths.prompt + rows * recipe.rollout.max_new_tokens
    return {
        "keys and values": steps * sizes.keys_values * _width(recipe),
        "joined weights": FLOAT * sizes.joined if lean else 0,
        "logits": rows * sizes.vocabulary[0] * _DRAWING,
    }


def _update(recipe: Recipe, sizes: Sizes, lengths: Lengths, machine: Machine) -> dict[str, int]:
    """Of the largest pass."""
    job = max(_jobs(recipe, lengths, machine), key=lambda job: job.rows * job.answer)
    trained, (words, width) = _trained(recipe, sizes), sizes.vocabulary
    kept = _activations(recipe, sizes, trained, lengths.prompt, job)
    # LoRA and computing again free much in between, and were seen to leave about as much in holes as there is.
    block = _width(recipe) * job.rows * job.answer * sizes.widest
    frees = recipe.lora is not None or recipe.gradient_checkpointing
    holes = kept if frees and not machine.gpu and block < _MAPPED else 0
    head = FLOAT * words * width if sizes.heads & trained.keys() else 0
    ends = FLOAT * _ENDS * job.rows * job.answer * width
    return {"activations": kept, "holes between them": holes, "log-probs": head + _TILES + ends}


class _Job(NamedTuple):
    """Answers that an optimiser step learns from, to a prompt `group` of them. rows: of the largest pass, of so many;
    shared: whether a prompt is run once for those of a pass; answer: steps of the longest one."""

    rows: int
    passes: int
    group: int
    shared: bool
    answer: int


def _activations(recipe: Recipe, sizes: Sizes, trained: Mapping[str, Shape], prompt: int, job: _Job) -> int:
    """What a pass keeps for its backward pass, and a layer's gradients there."""
    width, layers, size = sizes.vocabulary[1], max(1, sizes.layers), _width(recipe)
    # What goes into the norms, and what they make of it, stays float32.
    norms = 0 if size == FLOAT else _NORMS * FLOAT * width
    layer = size * sizes.activations // layers + norms
    cells = job.rows * job.answer + (-(-job.rows // job.group) if job.shared else job.rows) * prompt
    if recipe.gradient_checkpointing:  # what goes into each layer, below the trained ones too, and one computed again
        return cells * (layers * width * size + 2 * layer)
    reached = sizes.reached(trained)
    kept = size * reached.kept(trained) + reached.layers * norms + (layer if reached.layers else 0)
    # Each of a shared prompt's answers has a copy of its keys and values.
    return cells * kept + (job.rows * prompt * reached.keys_values * size if job.shared else 0)


def _jobs(recipe: Recipe, lengths: Lengths, machine: Machine) -> Iterator[_Job]:
    """The kinds of answers, cut into passes (passes.py)."""
    prompts, longest = _prompts(recipe, machine), recipe.rollout.max_new_tokens
    if isinstance(recipe.objective, Dpo):
        answer = longest if recipe.objective.samples else lengths.answer
        yield _job(recipe, machine, 2 * prompts, 2, lengths.prompt, answer, unit=2)
        return
    if recipe.objective.samples:
        group = _group(recipe)
        yield _job(recipe, machine, prompts * group, group, lengths.prompt, longest)
    if _learns(recipe):
        yield _job(recipe, machine, prompts, 1, lengths.prompt, lengths.answer)


def _job(recipe: Recipe, machine: Machine, rows: int, group: int, prompt: int, answer: int, unit: int = 1) -> _Job:
    limits = Limits.of("cuda" if machine.gpu else "cpu", recipe.optim.micro_batch)
    shared = shares_prompts(recipe, machine.shared)
    cells = answer + prompt / (group if shared else 1)
    most = int(min(rows, limits.rows, limits.cells / max(1, cells)))
    largest = max(unit, most // unit * unit)
    return _Job(largest, -(-rows // largest), group, shared, answer)


def _learns(recipe: Recipe) -> bool:
    """Whether a hybrid objective learns recorded answers."""
    mixing = recipe.objective.mixing
    return not isinstance(mixing, Fixed) or mixing.value < 1


def _prompts(recipe: Recipe, machine: Machine) -> int:
    """A process's share of a step's."""
    return max(1, recipe.rollout.prompts_per_step // machine.processes)


def _group(recipe: Recipe) -> int:
    """Answers to a prompt."""
    return recipe.rollout.group_size if recipe.objective.judges else 1


def _words(text: str | None) -> int:
    return len(text or "") // _CHARACTERS


def _units(ref: AudioRef | None, stores: dict[Path, UnitStore]) -> int:
    """Of a recording; 0 where its file does not say: reading it says why."""
    if ref is None:
        return 0
    if ref.units is not None:
        return len(ref.units)
    try:
        if ref.key is not None:
            if ref.path not in stores:
                stores[ref.path] = UnitStore(ref.path)
            return len(stores[ref.path].get(ref.key))
        seconds = soundfile.info(str(ref.path)).duration
    except (InputError, soundfile.SoundFileError, TypeError, OSError):
        return 0
    return int(_UNITS * (seconds if ref.seconds is None else min(seconds, ref.seconds)))
