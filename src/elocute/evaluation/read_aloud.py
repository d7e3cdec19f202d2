"""A TTS model reads held-out rows aloud, once each: eval.json, every answer's numbers, and the sound of the first ones.

Who hears the labels (`evaluation.labels` of a recipe, `--labels` of `elocute eval`) are rewards that did not decide the
run; each dimension is heard by one of them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from elocute.data.audio import save_wav
from elocute.data.files import write_atomically
from elocute.data.normalise import normalise
from elocute.data.rows import check_rows, read_rows
from elocute.data.types import Example, Utterance
from elocute.errors import InputError
from elocute.evaluation.combinations import in_every_combination
from elocute.evaluation.evaluate import (
    SOUNDS,
    check_ear,
    check_target,
    digest_rows,
    ear_option,
    record,
    write_eval,
)
from elocute.evaluation.independent import Evaluators, check_independent, trained_against
from elocute.evaluation.reading import GUARD, Reading, listen, paired, summarise, why_unjudged
from elocute.evaluation.unit_suites import Job
from elocute.models import SpeechLM, load_speaker, load_template
from elocute.models.reading import Template, labels_of, text_of
from elocute.progress import Progress
from elocute.recipe import load_rewards
from elocute.recipe.ears import EarSpec
from elocute.recipe.rewards import AudioJudgeSpec, EmotionSpec, LabelListenerSpec, ProsodySpec
from elocute.rewards.build import build_ear, build_reward
from elocute.rewards.identity import identity
from elocute.rewards.labels import LabelListener
from elocute.rollout import check_room
from elocute.rollout.speak import room, speak


def read_rows_to_read(
    data: Path, limit: int | None, model: Path, ear: EarSpec, labels: Sequence[LabelListenerSpec], where: str
) -> list[Example]:
    """The (first `limit`) rows of a file, checked: the model can read them, and ear and listeners hear them.

    where: what `labels` are called in errors, before the number of one.
    """
    check_ear(ear)
    rows, template = read_rows(data)[:limit], load_template(model)
    check_rows(rows, partial(_check_row, template))
    with label_listeners(labels, rows, where):
        return rows


def _check_row(template: Template, row: Example) -> None:
    template.encode_row(row)
    if not normalise(text_of(row)):
        raise InputError(f"{row.where}: messages: expected words to say, found {text_of(row)!r}")


@contextmanager
def label_listeners(
    specs: Sequence[LabelListenerSpec], rows: Sequence[Example], where: str
) -> Iterator[list[LabelListener]]:
    """The listeners, open. InputError for one that knows no label of a row, or two that hear one dimension."""
    listeners: list[LabelListener] = []
    heard_by: dict[str, int] = {}
    try:
        for number, spec in enumerate(specs):
            listener = build_reward(spec)
            listeners.append(listener)
            for name in listener.dimensions:
                if name in heard_by:
                    raise InputError(f"{where}.{number}: {name} is heard by {where}.{heard_by[name]} too; choose one")
                heard_by[name] = number
            own = [row for row in rows if labels_of(row).keys() & set(listener.dimensions)]
            if not own:
                raise InputError(f"{where}.{number}: no row has a label in {' or '.join(listener.dimensions)}")
            listener.check(own)
        yield listeners
    finally:
        for listener in listeners:
            if hasattr(listener, "close"):
                listener.close()


def evaluate_aloud(
    lm: SpeechLM,
    examples: Sequence[Example],
    name: str,
    *,
    earlier: dict,
    model: Path,
    data: Path,
    samples: Path,
    ear: EarSpec,
    labels: Sequence[LabelListenerSpec],
    seed: int,
    temperature: float | Sequence[float] | None,
    max_new_tokens: int | None = None,
    batch: int = 64,
    combine: bool = False,
    progress: Progress = lambda *_: None,
) -> dict:
    """Read, hear, measure. Returns eval.json's content: `earlier` and, under `name`, the metrics.

    `samples/name.jsonl` gets every row's numbers; with `combine` `samples/combinations-name.jsonl` those of the first
    row's text in every combination of labels. "after" is also compared with "before", row by row.
    """
    asked = list(examples)
    if combine and lm.template.takes_labels:
        asked += in_every_combination(examples[0], lm.template.schema)
    with closing(build_ear(ear)) as listener, label_listeners(labels, examples, "labels") as hearing:
        who = [
            {"dimensions": list(one.dimensions)} | identity(spec, one)
            for spec, one in zip(labels, hearing, strict=True)
        ]  # fmt: skip
        longest = _longest(lm, asked, max_new_tokens)
        utterances = _read_all(lm, asked, seed, temperature, longest, batch, progress)
        readings = listen(asked, utterances, listener, hearing, progress)
    rows = write_readings(samples, name, readings[: len(examples)], sounds=SOUNDS)
    if len(asked) > len(examples):
        write_readings(samples, f"combinations-{name}", readings[len(examples) :], sounds=len(asked))
    values = record(earlier, name, summarise(rows), model=model, ear=ear, seed=seed) | {
        "temperature": lm.temperature if temperature is None else temperature,
        "max_new_tokens": longest,
        "data_digest": digest_rows(data, examples),
        "labels": who,
        "limits": GUARD.model_dump(mode="json")["limits"],
        "unjudged": earlier.get("unjudged", {}) | {name: why_unjudged(rows)},
    }
    if name == "after":
        before = (samples / "before.jsonl").read_bytes().splitlines()  # a text's own end at U+2028, too
        values["paired"] = paired([json.loads(line) for line in before], rows)
    return values


def _longest(lm: SpeechLM, examples: Sequence[Example], max_new_tokens: int | None) -> int:
    """How many tokens an answer may have. InputError when they do not fit behind a row's prompt."""
    lengths: dict[str, int] = {}
    for example in examples:
        lengths[example.where] = max(len(lm.template.encode_row(example)), lengths.get(example.where, 0))
    longest = max_new_tokens or room(lm, max(lengths.values()))
    check_room(lm, lengths, longest)
    return longest


def _read_all(
    lm: SpeechLM,
    examples: Sequence[Example],
    seed: int,
    temperature: float | Sequence[float] | None,
    max_new_tokens: int,
    batch: int,
    progress: Progress,
) -> list[Utterance]:
    """Each example's speech; its draws are functions of the seed and the row, so before and after have the same."""
    found: list[Utterance] = []
    for start in range(0, len(examples), batch):
        piece = examples[start : start + batch]
        spoken = speak(
            lm,
            [(text_of(example), labels_of(example)) for example in piece],
            seed=seed,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch=batch,
            names=[example.id for example in piece],
        )
        found += [one.utterance for one in spoken]
        progress("speak", len(found), len(examples), {})
    return found


def write_readings(folder: Path, name: str, readings: Sequence[Reading], *, sounds: int) -> list[dict]:
    """`folder/name.jsonl`, and WAVs of the first `sounds` under folder/name/; returns the lines."""
    rows = []
    for index, reading in enumerate(readings):
        audio = None
        if index < sounds and len(reading.utterance.waveform):
            audio = f"{name}/{index}.wav"
            save_wav(folder / audio, reading.utterance.waveform, reading.utterance.sample_rate)
        rows.append(reading.to_json(audio))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / f"{name}.jsonl", lines.encode())
    return rows


# ---- elocute eval --suite reading ----------------------------------------------------------------------------------


def reading_job(
    target: Path,
    data: Path,
    out: Path,
    *,
    rows: int | None,
    ear: EarSpec,
    labels: Path | None,
    allow_trained: bool,
    temperature: float | Sequence[float] | None,
    max_new_tokens: int | None,
    seed: int,
) -> Job:
    """Checks model folder, listeners and rows. labels: a YAML file whose `rewards` say which labels they hear."""
    model = check_target(target, out)
    specs = [] if labels is None else _load_listeners(labels)
    where = f"{labels}: rewards"
    evaluators = ear_option(ear) | {
        f"--labels rewards.{number}": spec.model_dump(mode="json") for number, spec in enumerate(specs)
    }
    check_independent(model, evaluators, allowed=allow_trained)
    examples = read_rows_to_read(data, rows, model, ear, specs, where)
    how = {"data": data, "ear": ear, "labels": specs, "seed": seed}
    how |= {"temperature": temperature, "max_new_tokens": max_new_tokens}
    about = {"model": str(model), "rows": len(examples)}
    return Job(about, partial(_evaluate_folder, model, examples, out, evaluators, how))


def _load_listeners(path: Path) -> list[LabelListenerSpec]:
    specs = load_rewards(path)
    for number, spec in enumerate(specs):
        if not isinstance(spec, ProsodySpec | EmotionSpec | AudioJudgeSpec):
            raise InputError(
                f"{path}: rewards.{number}: kind: expected one that hears labels, prosody, emotion or audio_judge, "
                f"got {spec.kind}"
            )
    return specs


def _evaluate_folder(
    model: Path, examples: Sequence[Example], out: Path, evaluators: Evaluators, how: dict, progress: Progress
) -> dict:
    values = evaluate_aloud(
        load_speaker(model), examples, "result", earlier={}, model=model, samples=out, progress=progress, **how
    )
    values |= {"suite": "reading", "trained_against": trained_against(model, evaluators)}
    write_eval(out / "eval.json", values)
    return values
