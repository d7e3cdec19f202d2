"""`elocute chat`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from elocute.cli.options import AsJson, Temperature
from elocute.errors import InputError, RunError


def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, for example runs/quickstart/model")],
    audio: Annotated[Path | None, typer.Option(help="The spoken question: any sound file.")] = None,
    text: Annotated[str | None, typer.Option(help="A written question instead.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the spoken answer goes.")] = Path("answer.wav"),
    temperature: Temperature = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """One turn: ask by voice or in writing, get the answer's text printed and its sound as a WAV.

    A textless model continues the recording instead.

    Example: `elocute chat starter/model --audio starter/audio/heldout-sum-0000.question.wav -o answer.wav`
    """
    if (audio is None) == (text is None):
        raise InputError("chat: expected either --audio or --text")
    from elocute.chat import one_turn
    from elocute.data.audio import save_wav

    utterance = one_turn(
        model, audio=audio, text=text, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    if utterance.broken:
        raise RunError(f"the answer is broken ({utterance.broken}); what it wrote: {utterance.text!r}")
    save_wav(out, utterance.waveform, utterance.sample_rate)
    if as_json:
        print(json.dumps({"text": utterance.text, "audio": str(out), "seconds": utterance.seconds}))
    else:
        if utterance.text:  # a textless model writes none
            print(utterance.text)
        print(f"{out} ({utterance.seconds:.2f} s)", file=sys.stderr)
