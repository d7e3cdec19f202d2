"""`elocute speak`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from elocute.cli.options import AsJson, Temperature
from elocute.errors import InputError, RunError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For the command: its labels' options are those of the model's schema."""


def speak(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, see docs/own-tts-model.md")],
    text: Annotated[str, typer.Option(help="What to speak.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the speech goes.")] = Path("speech.wav"),
    temperature: Temperature = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Default: 1024, or what the model's context leaves.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Speak a text with a model that reads aloud, in the structure, emotion, speed and tone that are asked for.

    Labels are options named after the dimensions of the model's schema, behind MODEL: `--emotion Happy --speed Slow`.

    Example: `elocute speak runs/rlaif_spa/model --text "The train leaves at nine." --emotion Happy -o happy.wav`
    """
    from elocute.data.audio import save_wav
    from elocute.models import load_speaker, load_template
    from elocute.rollout.speak import speak as synthesise

    if str(model).startswith("-"):
        raise InputError(f"speak: {model}: MODEL comes first, its labels behind it")
    if out.is_dir():
        raise InputError(f"speak: -o {out}: expected a file, found a folder")
    template = load_template(model)
    labels = read_labels(context.args, list(template.schema.dimensions))
    template.encode(text, labels)  # what is wrong with them is said before the weights are read
    [spoken] = synthesise(
        load_speaker(model), [(text, labels)], seed=seed, temperature=temperature, max_new_tokens=max_new_tokens
    )
    utterance = spoken.utterance
    if utterance.broken:
        other = "another --seed" + (" or a higher --max-new-tokens" if max_new_tokens else "")
        raise RunError(f"the speech is broken ({utterance.broken}); {other} may do better")
    save_wav(out, utterance.waveform, utterance.sample_rate)
    found = {"audio": str(out), "seconds": utterance.seconds, "units": len(spoken.units), "labels": labels}
    if utterance.text:  # of a model that writes what it then speaks
        found["written"] = utterance.text
    if as_json:
        print(json.dumps(found))
    else:
        if utterance.text:
            print(utterance.text)
        print(f"{out} ({utterance.seconds:.2f} s, {len(spoken.units)} units)", file=sys.stderr)


def read_labels(words: Sequence[str], dimensions: Sequence[str]) -> dict[str, str]:
    """`--emotion Happy --speed=Slow` → labels by dimension. InputError for any other option, and for one that comes
    twice."""
    labels: dict[str, str] = {}
    left = iter(words)
    for word in left:
        option, equals, label = word.partition("=")
        if option.removeprefix("--") not in dimensions or not option.startswith("--"):
            raise InputError(f"speak: no such option: {word}; this model's labels: --{', --'.join(dimensions)}")
        label = label if equals else next(left, "")
        if not label or label.startswith("--"):
            raise InputError(f"speak: {option}: expected a label")
        if option.removeprefix("--") in labels:
            raise InputError(f"speak: {option}: expected once")
        labels[option.removeprefix("--")] = label
    return labels
