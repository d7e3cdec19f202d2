"""All verbs under one name."""

import os
import sys

import typer

from elocute.cli.candidates import sample, score
from elocute.cli.chat import chat
from elocute.cli.encode import encode
from elocute.cli.evaluate import evaluate
from elocute.cli.label import label
from elocute.cli.pairs import SETTINGS, pairs
from elocute.cli.rounds import rounds
from elocute.cli.speak import SETTINGS as LABELS
from elocute.cli.speak import speak
from elocute.cli.train import report, train
from elocute.errors import InputError, RunError

app = typer.Typer(
    name="elocute",
    help="Reinforcement learning and preference optimisation from AI feedback for language models that speak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for verb in (train, report, encode, sample, score, rounds, label, chat):
    app.command()(verb)
app.command("eval")(evaluate)
app.command(context_settings=SETTINGS)(pairs)
app.command(context_settings=LABELS)(speak)


def main() -> None:
    """Run the command line; user errors are one line on stderr."""
    # The model is small talk to these libraries: no progress bars or advice between ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # of what reads GGUF files
    try:
        app()
    except InputError as error:
        _end(error, 2)
    except RunError as error:
        _end(error, 1)
    except KeyboardInterrupt:
        _end("stopped", 1)


def _end(why: object, status: int) -> None:
    # One write: the lines of several processes that share a terminal stay whole.
    sys.stderr.write(f"{why}\n")
    sys.exit(status)
