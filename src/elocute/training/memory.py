"""What a run needs of memory, reckoned before a weight is loaded.

A process needs most at one of these moments; the highest counts:

    rollout, evaluation    weights, AdamW's two moments, the reference's copy, keys and values, a step's logits
    update                 the same, gradients, a micro-batch's activations, the head's new gradient
    step                   the same, gradients, on a GPU the optimiser's scratch
    saving                 with LoRA: the weights again, merged; where processes divide something: the weights again
    loading                where they divide layers (training/share.py): the weights and the reference, before that

What is not known before it is loaded is left out or taken at its least: codec and judges, prompts and recorded answers.
An estimate above what there is says that the run cannot fit; one a little below says not that it will.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import soundfile

from elocute.data.types import AudioRef, Example
from elocute.data.units import UnitStore
from elocute.errors import InputError
from elocute.models.sizes import Sizes
from elocute.recipe.schema import Dpo, Fixed, Recipe
from elocute.training.machine import GIB, Machine

FLOAT = 4
_DRAWING = 28
"""Bytes for each row and word of the vocabulary while a step is drawn (`draw` of rollout/sampler.py)."""
_TILES = 16 << 20
"""Logits of the log-probs (objectives/logprobs.py)."""
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
    layers = parts if machine.shared == "layers" else 1
    standing = {"weights": weights // layers, "reference": reference // layers, "AdamW": 2 * FLOAT * trained // parts}
    if parts > layers:
        standing["parts of weights"] = FLOAT * trained // parts
    # Autocast copies what is trained, for as long as a forward pass lasts; the backward pass keeps some of it longer.
    copied = {"weights in bfloat16": 2 * trained if _width(recipe) < stored else 0}
    gradients = FLOAT * trained * (2 if machine.processes > 1 else 1)  # what exchanges them has them again
    added = gradients if _micro_batches(recipe, machine) > 1 else 0
    passing = sampling = standing | copied
    if layers > 1:
        gradients = added = FLOAT * trained // parts
        passing = passing | {"whole layers": int(_whole_at_a_time(sizes) * (weights + FLOAT * trained))}
        sampling = sampling | {"whole weights": weights}
    moments = {
        "step": standing | {"gradients": gradients, "scratch": FLOAT * trained // parts if machine.gpu else 0},
        "update": passing | {"gradients": added} | _update(recipe, sizes, lengths, machine),
        "evaluation": sampling | _sampling(recipe, sizes, lengths, min(recipe.evaluation.batch, lengths.evaluated)),
    }
    if recipe.objective.samples and recipe.rollout.vllm is None:  # a server's memory is its own
        rows = _prompts(recipe, machine) * _group(recipe)
        moments["rollout"] = sampling | _sampling(recipe, sizes, lengths, rows)
    if recipe.lora or parts > 1:
        merged = stored * sizes.weights if recipe.lora else 0
        moments["saving"] = standing | {"merged weights": merged, "weights again": weights if parts > 1 else 0}
    if layers > 1:
        moments["loading"] = {"weights": weights, "reference": reference}
    needs = [Need(name, {part: value for part, value in parts.items() if value}) for name, parts in moments.items()]
    return max(needs, key=lambda need: need.bytes)


def trained_numbers(recipe: Recipe, sizes: Sizes) -> int:
    """How many numbers are trained: LoRA's, or all that are not frozen."""
    if recipe.lora is None:
        frozen = {n: shape for n, shape in sizes.shapes.items() if any(p.search(n) for p in recipe.freeze)}
        return sizes.weights - Sizes(frozen).weights
    targets = set(recipe.lora.targets)
    adapted = [shape for name, shape in sizes.shapes.items() if len(shape) == 2 and targets & set(name.split("."))]
    return recipe.lora.rank * sum(map(sum, adapted))


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


def _sampling(recipe: Recipe, sizes: Sizes, lengths: Lengths, rows: int) -> dict[str, int]:
    kept = rows * (lengths.prompt + recipe.rollout.max_new_tokens) * sizes.keys_values
    return {"keys and values": kept * _width(recipe), "logits": rows * sizes.vocabulary[0] * _DRAWING}


def _update(recipe: Recipe, sizes: Sizes, lengths: Lengths, machine: Machine) -> dict[str, int]:
    """Of the largest micro-batch."""
    rows, answer = max(_batches(recipe, lengths, machine), key=lambda batch: batch[0] * batch[1])
    (words, width), layers = sizes.vocabulary, max(1, sizes.layers)
    layer = sizes.activations // layers  # beside what is kept, the backward pass has a layer's gradients
    if recipe.gradient_checkpointing:  # what goes into each layer is kept, and one layer computed again
        kept = rows * (lengths.prompt + answer) * (layers * width + 2 * layer)
    else:  # a prompt is run once, each of its answers has a copy of its keys and values
        kept = (rows * answer + -(-rows // _group(recipe)) * lengths.prompt) * (sizes.activations + layer)
        kept += rows * lengths.prompt * sizes.keys_values
    head = 0 if recipe.lora else FLOAT * words * width
    return {"activations": kept * _width(recipe), "log-probs": head + _TILES + 2 * FLOAT * rows * answer * width}


def _batches(recipe: Recipe, lengths: Lengths, machine: Machine) -> Iterator[tuple[int, int]]:
    """The kinds of micro-batches: rows, and steps of an answer."""
    rows, prompts, longest = recipe.optim.micro_batch, _prompts(recipe, machine), recipe.rollout.max_new_tokens
    if isinstance(recipe.objective, Dpo):
        yield 2 * min(max(1, rows // 2), prompts), longest if recipe.objective.samples else lengths.answer
        return
    if recipe.objective.samples:
        yield min(rows, prompts * _group(recipe)), longest
    if _learns(recipe):
        yield min(rows, prompts), lengths.answer


def _micro_batches(recipe: Recipe, machine: Machine) -> int:
    """How many an optimiser step has."""
    rows, prompts = recipe.optim.micro_batch, _prompts(recipe, machine)
    if isinstance(recipe.objective, Dpo):
        return -(-prompts // max(1, rows // 2))
    sampled = -(-prompts * _group(recipe) // rows) if recipe.objective.samples else 0
    return sampled + (-(-prompts // rows) if _learns(recipe) else 0)


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
