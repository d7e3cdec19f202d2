"""How far the local judges of continuations can be trusted, on stories whose endings are known to be right or wrong.

    python -m benchmarks.judge_audit           judges everything, writes the results and the table in the docs
    python -m benchmarks.judge_audit --fit     only prints the weights that the fitting half gives

Needs the extra `local-judges`. What was judged is kept in runs/judge_audit, and a second call goes on there.

- Stories: the test split of starter/stories.py, told to the judges as a recogniser would write them. Half of the topics
  choose the weights, the other half are audited; thirty stories written by hand (judge_stories.txt) are audited too.
- Two tasks, by turns: after an opening of nine words the rest of the story, after four sentences the ending.
- Classes: the true continuation, and what was made of it; TARGETS says what some of them deserve, FITTED which of those
  choose a judge's weights.
"""

import argparse
import hashlib
import inspect
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.tables import provenance, write_table
from elocute.data.digest import digest_path
from elocute.data.files import write_atomically
from elocute.data.normalise import normalise
from elocute.evaluation.statistics import bootstrap_mean, jackknife
from elocute.progress import RunProgress
from elocute.rewards import coherence, relatedness
from elocute.rewards.coherence import CoherenceReward
from elocute.rewards.continuation import five_points
from elocute.rewards.relatedness import RelatednessReward
from starter.stories import draw_stories, plots, vocabulary

RUN = Path("runs/judge_audit")
RESULT = Path("benchmarks/results/judge_audit.json")
PAGE = Path("docs/continuation-judges.md")
HAND = Path(__file__).with_name("judge_stories.txt")
STORIES, SEED, OPENING = 120, 5, 9  # OPENING in words: what fits in three seconds

# What a person would give. Not fitted: repeated, copied and one-word continuations, which continuation.py holds down,
# and misheard ones, for a text LM cannot know that a word was misheard. What that costs is in the table.
TARGETS = {"true": 5, "hard": 3, "bland": 3, "other": 2, "shuffled": 1}
FITTED = {"coherence": tuple(TARGETS), "relatedness": ("true", "hard", "other")}  # the encoder reads topics only
LABELS = {
    "true": "the true continuation",
    "misheard": "the same, one word in six misheard",
    "hard": "an ending that contradicts the story",
    "bland": "what fits every story",
    "other": "continuation of another story",
    "shuffled": "its words shuffled",
    "repeated": "its first three words again and again",
    "copied": "the prompt once more",
    "one word": "one word",
}
JUDGES = ("perplexity", "coherence", "relatedness")
BLAND = (
    "it was a very good day and everyone was happy",
    "and then they all went home and slept well",
    "they had a lot of fun and laughed together",
    "after that everything was all right again",
    "that was a nice surprise for the whole family",
    "in the end they were glad that it was over",
)


@dataclass(frozen=True)
class Case:
    """One continuation to be judged. part: "fit", "audit" or "hand"; texts are in the one spelling."""

    part: str
    story: str
    kind: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Told:
    """A story for the audit: four sentences, its ending, one that contradicts it, another story's."""

    part: str
    name: str
    beginning: str
    ending: str
    hard: str
    other: str
    other_beginning: str


def told_stories() -> list[Told]:
    """The generator's, topics by turns for fitting and for the audit, and those written by hand."""
    fitting = set(sorted({plot.topic for plot in plots()})[::2])
    drawn = draw_stories("test", STORIES, SEED)
    by_part = {part: [s for s in drawn if (s.topic in fitting) == (part == "fit")] for part in ("fit", "audit")}
    told = []
    for part, stories in by_part.items():
        for story in stories:
            other = next(s for s in stories[stories.index(story) + 1 :] + stories if s.topic != story.topic)
            beginning, elsewhere = " ".join(story.sentences), " ".join(other.sentences)
            elsewhere = re.sub(rf"\b{other.hero}\b", story.hero, elsewhere)  # a name alone must not decide
            told.append(Told(part, story.id, beginning, story.ending, story.hard, story.swapped, elsewhere))
    lines = [line.split(" | ") for line in HAND.read_text(encoding="utf-8").splitlines() if " | " in line]
    for i, (beginning, ending, hard) in enumerate(lines):
        far = lines[(i + 1) % len(lines)]
        told.append(Told("hand", f"hand-{i}", beginning, ending, hard, far[1], far[0]))
    return told


def cases() -> Iterator[Case]:
    """Every story in every class, its task by turns."""
    words = tuple(vocabulary())
    for i, told in enumerate(told_stories()):
        if i % 2:
            prompt, true, hard, other = told.beginning, told.ending, told.hard, told.other
        else:
            prompt, rest = _opening(told.beginning)
            true, hard = f"{rest} {told.ending}", f"{rest} {told.hard}"
            other = f"{_opening(told.other_beginning)[1]} {told.other}"
        prompt, true, hard, other = map(normalise, (prompt, true, hard, other))
        draw = Random(f"{SEED} {told.name}")
        said = true.split()
        texts = {
            "true": true, "misheard": misheard(said, words, draw), "hard": hard, "other": other,
            "shuffled": " ".join(draw.sample(said, len(said))),
            "repeated": " ".join((said[:3] * len(said))[: len(said)]), "copied": prompt, "one word": said[-1],
            "bland": " ".join(draw.sample(BLAND, 1 if i % 2 else 3)),
        }  # fmt: skip
        for kind, text in texts.items():
            yield Case(told.part, told.name, kind, prompt, text)


def misheard(words: Sequence[str], known: tuple[str, ...], draw: Random) -> str:
    """One word in six, at least one, becomes the word that is spelt most like it, as a recogniser errs."""
    wrong = set(draw.sample(range(len(words)), max(1, len(words) // 6)))
    return " ".join(_alike(w, known) if i in wrong else w for i, w in enumerate(words))


@cache
def _alike(word: str, known: tuple[str, ...]) -> str:
    """Another word with the same first letter, spelt as much alike as any."""
    others = [w for w in known if w[0] == word[0] and w != word] or ["the"]
    return get_close_matches(word, others, n=1, cutoff=0.0)[0]


def _opening(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[:OPENING]), " ".join(words[OPENING:])


# ---- judging ---------------------------------------------------------------------------------------------------------


class Signals:
    """Signals of a judge by (what they come from, prompt, text), kept on disk."""

    def __init__(self, name: str, judge):
        self.file, self.judge, self.source = RUN / f"{name}.json", judge, source_of(judge)
        self.known = json.loads(self.file.read_text()) if self.file.exists() else {}

    def __call__(self, pairs: Sequence[tuple[str, str]], progress) -> np.ndarray:
        """float64 [N, signals]; stopped and called again, it goes on."""
        todo = [pair for pair in dict.fromkeys(pairs) if self._key(pair) not in self.known]
        for start in range(0, len(todo), 32):
            chunk = todo[start : start + 32]
            rows = self.judge.signals(*zip(*chunk, strict=True)).tolist()
            self.known |= {self._key(pair): row for pair, row in zip(chunk, rows, strict=True)}
            write_atomically(self.file, json.dumps(self.known).encode())
            progress(self.file.stem, min(start + 32, len(todo)), len(todo), {})
        return np.array([self.known[self._key(pair)] for pair in pairs])

    def _key(self, pair: tuple[str, str]) -> str:
        return hashlib.sha256("\n".join((self.source, *pair)).encode()).hexdigest()[:20]


def source_of(judge) -> str:
    """Digest of what a judge's signals come from: its weights, the code that reads them, the texts' one spelling."""
    reader = judge.lm if hasattr(judge, "lm") else judge.encoder
    code = (type(judge).signals, inspect.getmodule(type(reader)), inspect.getmodule(normalise))
    said = (digest_path(reader.path), version("transformers"), *map(inspect.getsource, code))
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


def scores(pairs: Sequence[tuple[str, str]], signals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{judge: [N]}. The texts are in the one spelling already, so coherence's fluency is what perplexity is made of."""
    found = {"perplexity": np.exp(signals["coherence"][:, 0])}
    for name, logits in (("coherence", coherence.logits), ("relatedness", relatedness.logits)):
        of = logits(signals[name])
        found[name] = np.array([five_points(z, *pair)[0] for z, pair in zip(of, pairs, strict=True)])
    return found


def fitted(signals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[1 + signals] weights of σ for targets in [1, 5]: least cross-entropy, by Newton's method."""
    x = np.column_stack([np.ones(len(signals)), signals])
    y, weights = (targets - 1) / 4, np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(curvature, x.T @ (y - p) - 1e-3 * weights)
    return weights


# ---- what is measured ------------------------------------------------------------------------------------------------


def auc(right: np.ndarray, wrong: np.ndarray) -> dict:
    """How often a true continuation scores above one of the class, ties half; interval by jackknife over stories."""
    above = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)
    everything = np.arange(len(right))
    without = [above[np.ix_(everything != i, everything != i)].mean() for i in everything]
    low, high = jackknife(float(above.mean()), without, low=0, high=1)
    return {"value": float(above.mean()), "ci95": [low, high]}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, ties by their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def audit(found: dict[str, np.ndarray], kinds: np.ndarray) -> dict:
    """{judge: {class: {mean, ci95, auc}}}: auc of the true continuations against the class."""
    table = {}
    for judge in JUDGES:
        by_kind = {kind: found[judge][kinds == kind] for kind in LABELS}
        table[judge] = {}
        for kind, values in by_kind.items():
            mean, low, high = bootstrap_mean(values, SEED)
            table[judge][kind] = {"mean": mean, "ci95": [low, high]}
            if kind != "true":
                table[judge][kind]["auc"] = auc(by_kind["true"], values)
    return table


def repetition(signals: dict[str, Signals], every: Sequence[Case], progress) -> dict:
    """Mean score of the first five words of the true continuation said 1, 2, 4 and 8 times."""
    true = [case for case in every if case.part == "audit" and case.kind == "true"][::2]
    means: dict[str, list[float]] = {judge: [] for judge in JUDGES}
    for times in (1, 2, 4, 8):
        pairs = [(case.prompt, " ".join(case.text.split()[:5] * times)) for case in true]
        found = scores(pairs, {name: of(pairs, progress) for name, of in signals.items()})
        for judge in JUDGES:
            means[judge].append(float(found[judge].mean()))
    return {"times": [1, 2, 4, 8], "stories": len(true)} | means


def seconds(judges: dict, every: Sequence[Case]) -> dict:
    """CPU seconds a judgement on one thread: 40 continuations of about twenty words, five after each opening."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rests = [case for case in every if case.kind == "true" and len(case.prompt.split()) == OPENING]
    texts = [" ".join(case.text.split()[:20]) for case in rests[:40]]
    prompts = [rests[i // 5].prompt for i in range(40)]
    found = {}
    for name, judge in judges.items():
        judge.signals(prompts[:2], texts[:2])
        started = time.process_time()
        judge.signals(prompts, texts)
        found[name] = (time.process_time() - started) / len(texts)
    torch.set_num_threads(threads)
    return found


# ---- the page --------------------------------------------------------------------------------------------------------


def markdown(values: dict) -> str:
    """The page's tables."""
    lines = [f"`{values['command']}`: mean score ± half of the 95 % interval, and AUC of the true continuation against "
             "each class (1: always above it, 0.5: chance, 0: always below it)."]  # fmt: skip
    for part, about in (("audit", "stories of topics that chose no weight"), ("hand", "stories written by hand")):
        table = values[part]
        lines += ["", f"**{table['stories']} {about}**", ""]
        lines.append("| continuation | " + " | ".join(f"{judge} | AUC" for judge in JUDGES) + " |")
        lines.append("|---|" + "---|---|" * len(JUDGES))
        for kind, label in LABELS.items():
            cells = [cell for judge in JUDGES for cell in _cells(table["judges"][judge][kind], judge)]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    repeated = values["repetition"]
    lines += ["", f"**The same five words, said again ({repeated['stories']} stories)**", ""]
    lines.append("| judge | " + " | ".join(f"{n} ×" for n in repeated["times"]) + " |")
    lines.append("|---|" + "---|" * len(repeated["times"]))
    for judge in JUDGES:
        lines.append(f"| {judge} | " + " | ".join(_score(v, judge) for v in repeated[judge]) + " |")
    agree, cost = values["spearman"], values["cpu_seconds_per_judgement"]
    lines += [
        "",
        f"Agreement of coherence and relatedness (Spearman): {agree['audit']:.2f} on the audited stories, "
        f"{agree['hand']:.2f} on those written by hand; among fluent continuations only (the "
        f"first five classes) {agree['audit_fluent']:.2f} and {agree['hand_fluent']:.2f}.",
        "",
        "CPU seconds a judgement (20 words after 9, one thread): "
        + ", ".join(f"{name} {of:.3f}" for name, of in cost.items())
        + ".",
    ]
    return "\n".join(lines)


def _cells(row: dict, judge: str) -> tuple[str, str]:
    half = (row["ci95"][1] - row["ci95"][0]) / 2
    return (
        f"{_score(row['mean'], judge)} ± {_score(half, judge)}",
        f"{row['auc']['value']:.2f}" if "auc" in row else "–",
    )


def _score(value: float, judge: str) -> str:
    return f"{value:.3f}" if judge == "perplexity" else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    RUN.mkdir(parents=True, exist_ok=True)
    every = list(cases())
    judges = {"coherence": CoherenceReward("coherence", device="cpu"),
              "relatedness": RelatednessReward("relatedness", device="cpu")}  # fmt: skip
    signals = {name: Signals(name, judge) for name, judge in judges.items()}
    with RunProgress() as progress:
        if args.fit:
            for name, of in signals.items():
                fitting = [case for case in every if case.part == "fit" and case.kind in FITTED[name]]
                found = of([(case.prompt, case.text) for case in fitting], progress)
                found = coherence.features(found) if name == "coherence" else found
                weights = fitted(found, np.array([TARGETS[case.kind] for case in fitting], dtype=float))
                print(f"{name}: WEIGHTS = Weights({', '.join(f'{w:.2f}' for w in weights)})")
            return
        values = provenance("benchmarks.judge_audit") | {
            "targets": TARGETS,
            "weights": {judge.__name__.split(".")[-1]: asdict(judge.WEIGHTS) for judge in (coherence, relatedness)},
            "spearman": {},
        }
        for part in ("audit", "hand"):
            own = [case for case in every if case.part == part]
            pairs, kinds = [(case.prompt, case.text) for case in own], np.array([case.kind for case in own])
            found = scores(pairs, {name: of(pairs, progress) for name, of in signals.items()})
            values[part] = {"stories": int((kinds == "true").sum()), "judges": audit(found, kinds)}
            fluent = np.isin(kinds, ("true", "misheard", "hard", "bland", "other"))
            for name, which in ((part, slice(None)), (f"{part}_fluent", fluent)):
                values["spearman"][name] = spearman(found["coherence"][which], found["relatedness"][which])
        values["repetition"] = repetition(signals, every, progress)
        values["cpu_seconds_per_judgement"] = seconds(judges, every)
    RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("judge-audit", markdown(values), PAGE)


if __name__ == "__main__":
    main()
