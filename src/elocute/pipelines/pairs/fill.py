"""One row of candidates → its pair rows, in the schema of data/rows.py."""

import os
import re
from collections import Counter
from copy import copy

import msgspec
from msgspec import Raw

from elocute.errors import InputError
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.rows import AUDIO_MARK, BadRow, Candidate, Row
from elocute.pipelines.pairs.rules import NoPair, Pair, Ranked, Rule, rank

_LIST = re.compile(rb"\[[\s\d,]*\]|\[\s*(?:\[[\s\d,]+\][\s,]*)+\]|null")
"""Of units or frames of them; that all frames are as wide is seen where they are learnt."""
WEIGHT_LATER = Raw(b" " * 11)
"""Room for a weight at the end of a line: six significant digits and what goes with them."""

UNUSABLE_AUDIO = "with unusable audio"


class RowPairs:
    """Chooses the pairs of a row and writes them into it. Paths lead from where the pairs are written."""

    def __init__(self, options: PairOptions):
        self.weights = options.rubric_weights
        self.rule = Rule(options)
        self.from_target = options.chosen_source == "sft_target"
        self.most = options.pairs_per_prompt
        self.leads = [
            _lead(options, kind) for kind in ("prompt", "target" if self.from_target else "generated", "generated")
        ]
        self.source = Raw(msgspec.json.encode(os.path.basename(options.input)))
        self.audio = _AudioCheck(options) if options.validate_audio else None

    def __call__(self, row: Row, tally: Counter[str]) -> tuple[list[Pair], list[Row]]:
        """The row's pairs, widest first, and a pair row for each. Candidates are counted in `tally`.

        Raises BadRow when the row is malformed, NoPair when it gives none.
        """
        target = self._take_answer(row)
        if row.output is None:
            raise BadRow("output: expected an object of candidates, got none")
        ranked = rank(row.output, self.weights, tally)
        pairs = self._heard(row, ranked, target, tally) if self.audio else self._choose(row, ranked, target)
        if self.most == 1:
            return pairs, [self._filled(row, pairs[0])]
        return pairs, [self._filled(copy(row), pair) for pair in pairs]

    def _take_answer(self, row: Row) -> Candidate | None:
        """Take a closing assistant's turn off the prompt: the supervised target, if it is one of the pair. Checks the
        prompt as data/rows.py does."""
        messages, audios = row.messages or [], row.audios or []
        marks = 0
        for message in messages:
            if message.content == "" and message.role == "user":
                raise BadRow(f'messages: expected text or {AUDIO_MARK} from the user, got ""')
            marks += message.content.count(AUDIO_MARK)
        if marks != len(audios):
            raise BadRow(f"audios: expected {marks} paths, one for each {AUDIO_MARK} in messages, got {len(audios)}")
        if "" in audios:
            raise BadRow(f'audios[{audios.index("")}]: expected a path, got ""')
        text = audio = None
        if messages and messages[-1].role == "assistant":
            content = messages.pop().content
            if content.count(AUDIO_MARK) > 1:
                raise BadRow(f"messages: expected at most one {AUDIO_MARK} in the answer")
            audio = audios.pop() if AUDIO_MARK in content else None
            text = content.replace(AUDIO_MARK, "").strip() if audio else content
        if not messages or messages[-1].role != "user":
            raise BadRow("messages: expected a user's turn before the answer, got none")
        if not self.from_target:
            return None
        speech = row.sft_target_audio or audio, row.sft_target_units, row.sft_target_tokens
        return Candidate(row.sft_target_text or text, *speech, cut=row.sft_target_cut)

    def _choose(self, row: Row, ranked: list[Ranked], target: Candidate | None) -> list[Pair]:
        return self.rule.against_target(target, row.chosen_score, ranked) if target else self.rule.pairs(ranked)

    def _heard(self, row: Row, ranked: list[Ranked], target: Candidate | None, tally: Counter[str]) -> list[Pair]:
        """The pairs to choose when answers without usable audio are left out, one by one as they come up."""
        if any(self.audio.problem("prompt", path) for path in row.audios or ()):
            raise NoPair("prompt with unusable audio")
        if target and self.audio.problem("target", target.audio):
            raise NoPair("supervised target with unusable audio")
        while True:
            pairs = self._choose(row, ranked, target)
            answers = {one[4]: one[5].audio for pair in pairs for one in (pair.chosen, pair.rejected)}
            unusable = [
                key for key, path in answers.items() if key in row.output and self.audio.problem("generated", path)
            ]
            if not unusable:
                return pairs
            tally[UNUSABLE_AUDIO] += len(unusable)
            ranked = [one for one in ranked if one[4] not in unusable]

    def _filled(self, row: Row, pair: Pair) -> Row:
        chosen_key, rejected_key, chosen, rejected = pair.chosen[4], pair.rejected[4], pair.chosen[5], pair.rejected[5]
        prompt_lead, chosen_lead, rejected_lead = self.leads
        if prompt_lead and row.audios:
            row.audios = [_moved(path, prompt_lead) for path in row.audios]
        row.sft_target_text = chosen.text if chosen.says else None
        row.sft_target_audio = chosen.audio and _moved(chosen.audio, chosen_lead)
        row.sft_target_units = chosen.units and _checked(chosen.units, chosen_key, "units")
        chosen_tokens = chosen.tokens and _checked(chosen.tokens, chosen_key, "tokens")
        row.sft_target_tokens = row.sft_target_units and chosen_tokens  # they say nothing without the units
        row.sft_target_cut = chosen.cut or None
        row.rejected_text = rejected.text if rejected.says else None
        row.rejected_audio = rejected.audio and _moved(rejected.audio, rejected_lead)
        row.rejected_units = rejected.units and _checked(rejected.units, rejected_key, "units")
        rejected_tokens = rejected.tokens and _checked(rejected.tokens, rejected_key, "tokens")
        row.rejected_tokens = row.rejected_units and rejected_tokens
        row.rejected_cut = rejected.cut or None
        if (row.sft_target_units or row.rejected_units) and not row.units_codec:
            raise BadRow("units_codec: expected the digest of the codec that output-units are of, got none")
        if not self.from_target:  # a target's score is there, or is not known
            row.chosen_score = -pair.chosen[0]
        row.rejected_score, row.score_gap = -pair.rejected[0], pair.gap if pair.gap == pair.gap else None
        row.chosen_key, row.rejected_key = chosen_key, rejected_key
        row.source_dataset = row.source_dataset or self.source
        row.weight, row.output = WEIGHT_LATER, None
        if self.most > 1 and row.id not in (None, ""):
            row.id = f"{row.id}:{chosen_key}-{rejected_key}"
        return row


def _lead(options: PairOptions, kind: str) -> str:
    """What leads from the output's folder to the root of relative paths: "", or a path that ends with a slash."""
    folder = os.path.realpath(os.path.dirname(options.output) or ".")
    way = os.path.relpath(os.path.realpath(options.root(kind)), folder)
    return "" if way == "." else f"{way}/"


def _moved(path: str, lead: str) -> str:
    if not lead or path[0] == "/":
        return path
    if path[0] != "." and "/." not in path and "//" not in path:
        return lead + path  # normal already, as nearly all are
    name, is_store, key = path.partition(".safetensors#")
    return os.path.normpath(lead + name) + is_store + key


def _checked(values: Raw, key: str, name: str) -> Raw | None:
    raw = bytes(values)
    if not _LIST.fullmatch(raw):
        raise BadRow(f"output.{key}.output-{name}: expected a list of integers, at least 0, or of frames of them")
    return values if raw.strip(b"[] \t\r\n") not in (b"", b"null") else None


class _AudioCheck:
    """Whether audio can be read and heard: what training would refuse is found here."""

    def __init__(self, options: PairOptions):
        from elocute.data.audio import load_audio
        from elocute.data.units import UnitStore

        self._load, self._open = load_audio, UnitStore
        self._roots = {kind: options.root(kind) for kind in ("prompt", "generated", "target")}
        self._keys: dict[str, frozenset[str]] = {}

    def problem(self, kind: str, path: str | None) -> str | None:
        """Why this audio cannot be used; None if it can, and for no audio."""
        if not path:
            return None
        place = os.path.join(self._roots[kind], path)
        name, is_store, key = place.partition(".safetensors#")
        try:
            if not is_store:
                self._load(place)
            elif key not in self._store(f"{name}.safetensors"):
                return f"{name}.safetensors holds no encoded audio called {key!r}"
        except InputError as error:
            return str(error)
        return None

    def _store(self, path: str) -> frozenset[str]:
        if path not in self._keys:
            self._keys[path] = self._open(path).keys()
        return self._keys[path]
