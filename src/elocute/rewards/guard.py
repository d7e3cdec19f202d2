"""Is the voice still a voice? What is measured stays within limits; rarely a goal, always worth watching."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from elocute.data.types import Answer
from elocute.errors import InputError
from elocute.prosody.measure import Prosody, measure
from elocute.recipe.rewards import Reference
from elocute.rewards.asr import asked
from elocute.rewards.outcome import Outcome, Scored
from elocute.rewards.proper import score_proper

Limits = Mapping[str, tuple[float | None, float | None]]


class GuardReward:
    """1 if every measure lies within its limits [least, most] (None: no limit), else 0.

    `detail` holds all that is measured (elocute.prosody.measure.Prosody) and which limits were broken; the means of the
    measures go to the run's metrics, where a collapse raises an alarm. What cannot be measured breaks its limit.
    """

    low, high = 0.0, 1.0
    measures = tuple(field.name for field in fields(Prosody))
    guards = True

    def __init__(self, name: str, limits: Limits, reference: Reference = "prompt"):
        if unknown := [limit for limit in limits if limit not in self.measures]:
            raise InputError(f"limits: {unknown[0]}: expected one of {', '.join(self.measures)}")
        self.name, self.limits, self.reference = name, limits, reference

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, lambda proper: [self._score(a) for a in proper], needs_audio=True)

    def _score(self, answer: Answer) -> Outcome:
        utterance = answer.utterance
        found = asdict(measure(utterance.waveform, utterance.sample_rate, asked(answer, self.reference)))
        broken = [name for name, limits in self.limits.items() if not _within(found[name], *limits)]
        return Scored(float(not broken), found | ({"broken": broken} if broken else {}))


def _within(value: float | None, least: float | None, most: float | None) -> bool:
    return value is not None and (least is None or value >= least) and (most is None or value <= most)
