"""A process that makes parts: tasks come in on its standard input, a line each, and go out answered in that order.

It ends when its input does, so none is left over when the process that started it is killed.
"""

import os
import sys
from pathlib import Path

import msgspec

from elocute.errors import InputError
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.parts import Made, PartMaker
from elocute.pipelines.pairs.split import Span


class Job(msgspec.Struct):
    """What a worker must know."""

    options: PairOptions
    folder: str
    array: bool

    def maker(self) -> PartMaker:
        return PartMaker(self.options, Path(self.folder), self.array)


class Answer(msgspec.Struct):
    """What a worker says: what a part gave, or what went wrong, and whether with the input."""

    made: Made | None = None
    said: str = ""
    is_input: bool = False


def serve() -> None:
    """A worker's life."""
    lines, out = sys.stdin.buffer, sys.stdout.buffer
    maker = msgspec.json.decode(lines.readline(), type=Job).maker()
    for line in lines:
        try:
            answer = Answer(made=maker.make(msgspec.json.decode(line, type=Span)))
        except InputError as error:
            answer = Answer(said=str(error), is_input=True)
        except OSError as error:
            answer = Answer(said=f"{error.filename}: {error.strerror or error}")
        try:
            out.write(msgspec.json.encode(answer) + b"\n")
            out.flush()
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more


if __name__ == "__main__":
    serve()
