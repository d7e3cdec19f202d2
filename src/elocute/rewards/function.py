"""Any Python callable as a reward, with TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`."""

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elocute.data.types import Answer
from elocute.errors import InputError, RunError
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper


class FunctionReward:
    """Calls `function` ("module:name" or "path/file.py:name") once a batch and takes its numbers as they are.

    The function gets lists of equal length, as keywords: `prompts`, `completions`, one per column of the rows, and
    `waveforms` with `sample_rates` for functions that listen; keywords it does not name are left out unless it takes
    **kwargs. conversational: prompts and completions are lists of messages (TRL's form for rows with `messages`);
    otherwise strings. low, high: the declared range.

    None (TRL: "does not apply"), NaN, a number out of range and an exception become Unavailable; a list of another
    length than the batch is a RunError, since no number can be matched to its answer.
    """

    def __init__(self, name: str, function: str, low: float, high: float, conversational: bool = True):
        self.name, self.low, self.high = name, low, high
        self.conversational = conversational
        self.function = load_function(function)
        parameters = inspect.signature(self.function).parameters.values()
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = {p.name for p in parameters}

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        keywords = {k: v for k, v in self._keywords(answers).items() if self.takes_all or k in self.takes}
        try:
            values = self.function(**keywords)
            if inspect.isawaitable(values):
                values = asyncio.run(_finished(values))
        except Exception as error:  # the user's code may raise anything; the reason is kept and counted
            return [Unavailable(f"the function raised {type(error).__name__}: {error}")] * len(answers)
        if not isinstance(values, list | tuple) or len(values) != len(answers):
            given = f"{len(values)} scores" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            raise RunError(f"reward {self.name}: the function gave {given} for {len(answers)} answers")
        return [self._outcome(value) for value in values]

    def _outcome(self, value: Any) -> Outcome:
        if value is None:
            return Unavailable("the function gave no score")
        try:
            number = float(value)
        except (TypeError, ValueError):
            return Unavailable(f"the function gave {value!r}, not a number")
        if math.isnan(number) or not self.low <= number <= self.high:
            return Unavailable(f"the function gave {number:g}, outside its range [{self.low:g}, {self.high:g}]")
        return Scored(number)

    def _keywords(self, answers: list[Answer]) -> dict[str, list[Any]]:
        examples = [a.example for a in answers]
        utterances = [a.utterance for a in answers]
        columns = {name for e in examples for name in e.columns}
        keywords: dict[str, list[Any]] = {name: [e.columns.get(name) for e in examples] for name in columns}
        for name in ("id", "question_text", "task_type"):
            keywords[name] = [getattr(e, name) for e in examples]
        keywords["sft_target_text"] = [e.target_text for e in examples]
        keywords["waveforms"] = [u.waveform for u in utterances]
        keywords["sample_rates"] = [u.sample_rate for u in utterances]
        if self.conversational:
            keywords["prompts"] = [[{"role": m.role, "content": m.content} for m in e.messages] for e in examples]
            keywords["completions"] = [[{"role": "assistant", "content": u.text}] for u in utterances]
        else:
            keywords["prompts"] = ["\n".join(m.content for m in e.messages) for e in examples]
            keywords["completions"] = [u.text for u in utterances]
        return keywords


def load_function(address: str) -> Callable[..., Any]:
    """The callable at "module:name" or "path/file.py:name". Raises InputError saying which half is wrong."""
    place, _, name = address.rpartition(":")
    if not place or not name:
        raise InputError(f"function: expected module:name or path/file.py:name, found {address!r}")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise InputError(f"function: {place} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"function: {place} has no callable {name!r}")
    return function


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"elocute_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _finished(values: Any) -> Any:
    return await values
