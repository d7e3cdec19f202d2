"""What the local judges of continuations share: the two texts, and what keeps a judge from being gamed.

A judge that likes what is likely or related likes repetition best: nothing is likelier than a phrase that was just
said, and nothing is nearer to a prompt than the prompt. So what a judge finds is multiplied by two factors that neither
likelihood nor nearness can buy back: how much of the continuation is new, and whether enough is said.
"""

import math
from collections.abc import Callable, Sequence

from elocute.data.normalise import normalise
from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.rewards.judge import question_of
from elocute.rewards.outcome import Invalid, Outcome, Unavailable
from elocute.rewards.proper import score_proper

LOW, HIGH = 1.0, 5.0
OLD, NEW = 0.5, 0.8  # novelty: at most OLD is nothing but repetition, NEW is as new as a good story
ENOUGH = 6  # words


class ContinuationJudge:
    """What the local judges have in common; `_judge(prompts [N], continuations [N])` gives one outcome each."""

    def check(self, examples: Sequence[Example]) -> None:
        """InputError naming every row whose prompt cannot be read."""
        check_rows(examples, prompt_of)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return judge_texts(answers, self._judge)


Judge = Callable[[list[str], list[str]], list[Outcome]]
"""(prompts [N], continuations [N]) → outcomes [N]."""


def prompt_of(example: Example) -> str:
    """What was said before the continuation: the row's `question_text`. Raises InputError when it has none."""
    prompt, _ = question_of(example)
    if not normalise(prompt):
        raise InputError(f"{example.where}: question_text: the judge needs the prompt in words")
    return prompt


def judge_texts(answers: Sequence[Answer], judge: Judge) -> list[Outcome]:
    """One outcome an answer: `judge` reads the prompts and the continuations that hold words.

    Invalid: no proper answer, or nothing in it can be said. Unavailable, all of them: the model failed.
    """

    def score(proper: list[Answer]) -> list[Outcome]:
        prompts = [prompt_of(a.example) for a in proper]
        texts = [a.utterance.text for a in proper]
        spoken = [i for i, text in enumerate(texts) if normalise(text)]
        outcomes: list[Outcome] = [Invalid("no words in the text")] * len(proper)
        try:
            judged = judge([prompts[i] for i in spoken], [texts[i] for i in spoken]) if spoken else []
        except RuntimeError as error:  # torch's word for: out of memory, a lost device …
            judged = [Unavailable(f"the model failed: {str(error).splitlines()[0]}")] * len(spoken)
        for i, outcome in zip(spoken, judged, strict=True):
            outcomes[i] = outcome
        return outcomes

    return score_proper(answers, score, needs_text=True)


def novelty(prompt: str, text: str) -> float:
    """Share of the continuation's pairs of neighbouring words that were not said before, in it or in the prompt.

    Both in the one spelling of `normalise`; the first pair begins with the prompt's last word. 1 for no words at all.
    """
    before = prompt.split()
    words = before[-1:] + text.split()
    said = set(zip(before, before[1:], strict=False))
    pairs = list(zip(words, words[1:], strict=False))
    new = 0
    for pair in pairs:
        new += pair not in said
        said.add(pair)
    return new / len(pairs) if pairs else 1.0


def five_points(logit: float, prompt: str, text: str) -> tuple[float, dict[str, float]]:
    """(score, detail): 1 + 4·σ(logit)·(how new)·(how much is said), in [1, 5]."""
    prompt, text = normalise(prompt), normalise(text)
    fresh = novelty(prompt, text)
    new = min(max((fresh - OLD) / (NEW - OLD), 0.0), 1.0)
    enough = min(len(text.split()) / ENOUGH, 1.0)
    quality = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    return LOW + (HIGH - LOW) * quality * new * enough, {"novelty": fresh, "words": len(text.split())}
