"""`elocute score`: the recipe's rewards on candidates (candidates.py), a line a prompt, in the order they came.

Outcomes keep their kind: what was not judged has no number. An unavailable judgement may be tried again; what was
judged is then kept as it is, and the prompt's answers are combined anew.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elocute.data.digest import digest_file
from elocute.data.normalise import normalise
from elocute.data.rows import check_rows, each_row
from elocute.data.types import Answer
from elocute.errors import InputError, RunError
from elocute.evaluation.continuation import auto_bleu_slamkit
from elocute.pipelines.candidates import (
    Fields,
    Row,
    check_candidates,
    moved,
    outcome_from_json,
    outcome_to_json,
    portions,
    utterance_of,
)
from elocute.pipelines.hire import hired
from elocute.pipelines.journal import Journal, Writer
from elocute.pipelines.tally import ScoredTally
from elocute.progress import Progress
from elocute.recipe import Judges, Recipe
from elocute.recipe.rewards import without_means
from elocute.rewards.combine import Judged, build_mixer
from elocute.rewards.outcome import Outcome, Scored, Unavailable

ROUNDS = 8
"""Answers judged together for each request that a judge may have in flight: few slots idle at the end."""

RUBRICS = {"semantic": "semantic_score", "acoustic": "paralinguistic_score"}
"""Under which of WavAlign's names the score of a judge with this rubric stands too."""

CHECKED_TOGETHER = 1000

Portion = tuple[Sequence[Row], Path, Path]
"""Rows, the folder that they stand in, the folder that their lines are for."""


class CandidateScorer:
    """Scores the candidates in the file `candidates` into the file `out`; a context, for rewards may hold processes.

    workers: on Ray; 0: this process (hire.py).
    """

    def __init__(self, recipe: Recipe | Judges, candidates: Path, out: Path, *, workers: int = 0):
        if not recipe.rewards:
            raise InputError("rewards: expected at least one to score with")
        if os.path.realpath(candidates) == os.path.realpath(out):
            raise InputError(f"-o {out}: expected another file than --candidates")
        self.recipe, self.candidates, self.out = recipe, candidates, out
        slots = max(getattr(reward, "concurrency", 1) for reward in recipe.rewards)
        self.budget = max(recipe.rollout.prompts_per_step * recipe.rollout.group_size, ROUNDS * slots)
        self._open = contextlib.ExitStack()
        self._crew = self._open.enter_context(hired(Jury, (recipe,), workers))

    def __enter__(self) -> "CandidateScorer":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def check(self, *, resume: bool) -> int:
        """The number of prompts. InputError for bad lines, what a reward cannot judge, and an `out` not free."""
        count = sum(self._crew("check", _some(self._rows(self.candidates))))
        self.journal = Journal(self.out, self._origin())
        self.journal.check(resume=resume)
        return count

    def run(self, *, resume: bool = False, retry: bool = False, progress: Progress = lambda *_: None) -> dict[str, Any]:
        """Do the whole work, or what is left of it; with `retry`, then again what is unavailable. The summary."""
        count = self.check(resume=resume or retry)
        watch = _Watch(count, progress)
        tally = self._score("score", self.candidates, self.journal, watch)
        if retry:
            tally = self._retry(watch)
        return {"scored": str(self.out)} | tally.summary() | {"answers_per_s": watch.rate}

    def _retry(self, watch: "_Watch") -> ScoredTally:
        """Judge again what is unavailable, into a journal of its own that then takes the place of `out`."""
        origin = self._origin() | {"again": digest_file(self.out)}
        journal = Journal(self.out.with_name(f"{self.out.name}.retry"), origin)
        if not journal.path.exists():  # an origin alone is left by a retry that has taken its place
            journal.origin_file.unlink(missing_ok=True)
        journal.check(resume=True)
        tally = self._score("retry", self.out, journal, watch)
        os.replace(journal.path, self.out)
        journal.origin_file.unlink()
        return tally

    def _score(self, stage: str, source: Path, journal: Journal, watch: "_Watch") -> ScoredTally:
        """Judge what is to be judged of `source`, keep the rest as it is, and write all in order."""
        tally = ScoredTally()
        with journal.writing(tally.add) as writer:
            watch(stage, writer.lines, 0, tally)
            for lines, judged in self._judged(stage, source, writer):
                writer.append(lines)
                for line in lines:
                    tally.add(line)
                watch(stage, writer.lines, judged, tally)
        return tally

    def _judged(self, stage: str, source: Path, writer: Writer) -> Iterator[tuple[list[Fields], int]]:
        rows = itertools.islice(self._rows(source), writer.lines, None)
        folders = source.parent, self.out.parent
        some = ((part, *folders) for part in portions(rows, COSTS[stage], self.budget))
        try:
            yield from self._crew(stage, some)
        except RunError as error:
            raise RunError(f"{error}; {writer.lines} prompts are in {self.out}, --resume goes on") from None

    def _rows(self, path: Path) -> Iterator[Row]:
        for fields, example in each_row(path, self.recipe.data.prompt_seconds):
            columns = {name: value for name, value in example.columns.items() if name != "output"}
            yield fields, replace(example, columns=columns)  # a reward sees one answer, not the others

    def _origin(self) -> dict[str, Any]:
        recipe = self.recipe
        [judges] = self._crew("judges", [()])
        return {
            "made_by": "elocute score",
            "candidates": digest_file(self.candidates),
            "rewards": [without_means(reward.model_dump(mode="json")) for reward in recipe.rewards],
            "judges": judges,
            "reward_mix": recipe.reward_mix.model_dump(mode="json", exclude={"max_unavailable"}),
            "listen": recipe.listen and without_means(recipe.listen.model_dump(mode="json")),
            "prompt_seconds": recipe.data.prompt_seconds,
        }


class Jury:
    """What judges candidates: the recipe's rewards."""

    def __init__(self, recipe: Recipe | Judges):
        self.recipe = recipe
        self.mixer = build_mixer(recipe.rewards, recipe.reward_mix, recipe.listen)

    def close(self) -> None:
        self.mixer.close()

    def judges(self, _) -> dict[str, str]:
        """The models behind endpoints, by the rewards' names."""
        parts = self.mixer.parts
        return {
            name: part.reward.endpoint.entry.model for name, part in parts.items() if hasattr(part.reward, "endpoint")
        }

    def check(self, rows: Sequence[Row]) -> int:
        """How many they are. InputError for bad ones and for what a reward cannot judge."""
        check_rows(rows, check_candidates)
        self.mixer.check([example for _, example in rows])
        return len(rows)

    def score(self, given: Portion) -> tuple[list[Fields], int]:
        """Lines with scores, and how many candidates were judged. RunError for a dead judge."""
        return self._lines(given, _answers, again=False)

    def retry(self, given: Portion) -> tuple[list[Fields], int]:
        """The same for scored lines; what was judged before stays as it is."""
        return self._lines(given, _unavailable, again=True)

    def _lines(self, given: Portion, cost: Callable[[Row], int], *, again: bool) -> tuple[list[Fields], int]:
        rows, source, target = given
        asked = [row for row in rows if cost(row)]
        judged = iter(self._judge(asked, again=again))
        lines = [next(judged) if cost(row) else row[0] for row in rows]
        return [moved(line, source, target) for line in lines], sum(map(cost, asked))

    def _judge(self, rows: Sequence[Row], *, again: bool) -> list[Fields]:
        """The rows, whose candidates have their scores; again: keep what their candidates have of them already."""
        items = [(row, key, candidate) for row in rows for key, candidate in row[0]["output"].items()]
        answers = [Answer(row[1], utterance_of(row[1], key, candidate)) for row, key, candidate in items]
        answers = self.mixer.read(answers)
        known = [_outcomes(candidate) if again else {} for _, _, candidate in items]
        outcomes = {name: self._outcomes(name, answers, known) for name in self.mixer.parts}
        judged = self.mixer.combine(outcomes, [row[1].id for row, _, _ in items])
        if not again:
            self.mixer.check_alive(judged, judged.silent)
        results = (self._result(judged, i, answers[i], candidate) for i, (_, _, candidate) in enumerate(items))
        heard = {answer.example.id: answer.example.question_text for answer in answers if self.mixer.transcriber}
        lines = []
        for fields, example in rows:
            named = {"id": example.id} | ({"question_text": heard[example.id]} if example.id in heard else {})
            lines.append(fields | named | {"output": {key: next(results) for key in fields["output"]}})
        return lines

    def _outcomes(self, name: str, answers: Sequence[Answer], known: Sequence[Mapping[str, Outcome]]) -> list[Outcome]:
        """One reward's outcomes: the known ones, and asked for where there is none or it was unavailable."""
        missing = [i for i, own in enumerate(known) if isinstance(own.get(name), Unavailable | None)]
        asked = self.mixer.judge(name, [answers[i] for i in missing]) if missing else []
        found = dict(zip(missing, asked, strict=True))
        return [found[i] if i in found else own[name] for i, own in enumerate(known)]

    def _result(self, judged: Judged, i: int, answer: Answer, candidate: Fields) -> Fields:
        outcomes = {name: own[i] for name, own in judged.outcomes.items()}
        scores = {name: _value(outcome) for name, outcome in outcomes.items()}
        named = {RUBRICS.get(getattr(reward, "rubric", None)): scores[reward.name] for reward in self.recipe.rewards}
        published = {name: score for name, score in named.items() if name and score is not None}
        return {
            **candidate,
            "output-text": answer.utterance.text,
            "score": judged.values[i],
            "outcome": outcome_to_json(judged.combined[i]),
            "scores": scores,
            "outcomes": {name: outcome_to_json(outcome) for name, outcome in outcomes.items()},
            "measures": _measures(answer.utterance.text, candidate),
            **({"gemini_score": published} if published else {}),  # last: what is tried again may get it then
        }


class _Watch:
    """Tells how far the work is; `rate`: answers judged a second."""

    def __init__(self, count: int, progress: Progress):
        self.count, self.progress = count, progress
        self.started, self.answers, self.rate = time.perf_counter(), 0, 0.0

    def __call__(self, stage: str, lines: int, answers: int, tally: ScoredTally) -> None:
        self.answers += answers
        self.rate = self.answers / (time.perf_counter() - self.started)
        values = {"answers_per_s": self.rate or None, "outcomes/unavailable": tally.kinds["unavailable"]}
        self.progress(stage, lines, self.count, values)


def _answers(row: Row) -> int:
    return len(row[0]["output"])


def _unavailable(row: Row) -> int:
    """How many candidates lack a judgement that may come yet."""
    own = (candidate["outcomes"].values() for candidate in row[0]["output"].values())
    return sum(any(outcome["kind"] == "unavailable" for outcome in outcomes) for outcomes in own)


COSTS = {"score": _answers, "retry": _unavailable}
"""How many judgements a stage asks for in a row."""


def _some(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while some := list(itertools.islice(rows, CHECKED_TOGETHER)):
        yield some


def _outcomes(candidate: Fields) -> dict[str, Outcome]:
    scores = candidate["scores"]
    return {name: outcome_from_json(scores[name], record) for name, record in candidate["outcomes"].items()}


def _value(outcome: Outcome) -> float | None:
    return outcome.value if isinstance(outcome, Scored) else None


def _measures(text: str, candidate: Fields) -> dict[str, float]:
    """auto-BLEU-2 of the words, as it is published, and of the units, of which a whole frame is one."""
    words = normalise(text).split()
    units = [tuple(unit) if isinstance(unit, list) else unit for unit in candidate.get("output-units") or ()]
    of_units = {"auto_bleu_units": auto_bleu_slamkit(units)} if units else {}
    return {"auto_bleu": auto_bleu_slamkit(words)} | of_units
