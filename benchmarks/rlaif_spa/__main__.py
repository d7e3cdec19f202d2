"""Which reward makes a voice say the words and mean them? RLAIF-SPA's comparison on the starter's TTS model.

    python -m benchmarks.rlaif_spa --jobs 2

Variants, all from starter/tts_lm, on the same neutral sentences, for as many steps: word errors alone; the paper's sum
of word errors and matching labels; rewards scaled in their group, words before style; the same with each wrong word's
speech blamed by itself; style learned from an answer's first prosody units alone, a unit that breaks an answer blamed
by itself. Then the recipe as it ships, for longer: all credit local, words by their likelihood. And an audit: three
judges that cannot help, with which nothing must be learned (judges.py). Each is measured on other sentences: words by
Whisper, labels by classifiers, none of which was a reward.
What is finished is not done again.
Needs the extra `faster-whisper`. The table: benchmarks/results/rlaif_spa.json, and in docs/prosody-rewards.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rlaif_spa import results
from benchmarks.runs import arguments, do_all, elocute
from elocute.data.files import write_atomically

RUNS = Path("runs/rlaif_spa_variants")
RECIPE = "recipes/starter/rlaif_spa.yaml"
MODEL = Path("starter/tts_lm")
HELD_OUT = Path("starter/expressive/test.jsonl")
DRAWS = 2
"""Answers to each sentence of the evaluation: by one alone, the same model's word errors differ by half."""
LISTENERS = "benchmarks/rlaif_spa/listeners.yaml"

TEMPERATURE = 0.85

ASR = "{kind: asr, ear: {kind: pocketsphinx, vocabulary: starter/expressive/sentences.txt}, form: linear"
PROSODY = "{kind: prosody, recordings: starter/expressive/recordings.jsonl, labels: starter/expressive/schema.yaml"
PROSODY += ", measures: {emotion: [pitch_median, pitch_range, energy]}"
GUARD = "{kind: guard}"
GATE = "gate: {reward: asr, at_least: 0.8}"
GROUP = ("optim.lr=1e-3", "objective.policy_gradient.blame=null", "reward_mix={scale: group, invalid_penalty: -2}")
RAW = ("optim.lr=1e-3", "objective.policy_gradient.blame=null", "reward_mix={scale: raw}")


def of_units(name: str, dimension: str, first: int, weight: int) -> str:
    """A prosody reward of one label, learned from an answer's first prosody units."""
    credit = f"{{units: prosody, first: {first}, weight: {weight}}}"
    return f"{PROSODY}, name: {name}, dimensions: [{dimension}], weight: 0, unit_credit: {credit}, {GATE}}}"


def judged(name: str) -> tuple[str, ...]:
    """Overrides for a judge of the audit."""
    function = f"benchmarks/rlaif_spa/judges.py:{name}"
    judge = f"{{kind: function, name: {name}, function: '{function}', low: 0, high: 1}}"
    return (f"rewards=[{judge}, {GUARD}]", *GROUP)


VARIANTS = {
    "wer_only": (f"rewards=[{ASR}}}, {GUARD}]", *GROUP),
    "paper": (f"rewards=[{ASR}, weight: 0.3}}, {PROSODY}, credit: match, weight: 0.7}}, {GUARD}]", *RAW),
    "gated": (f"rewards=[{ASR}, weight: 0.5}}, {PROSODY}, weight: 0.5, {GATE}}}, {GUARD}]", *GROUP),
    "gated_word_credit": (
        f"rewards=[{ASR}, weight: 0.5, word_credit: 0.5}}, {PROSODY}, weight: 0.5, {GATE}}}, {GUARD}]",
        *GROUP,
    ),
    "gated_unit_credit": (
        f"rewards=[{ASR}, weight: 0.5, word_credit: 0.5}}, {of_units('melody', 'emotion', 3, 6)}, "
        f"{of_units('pace', 'speed', 6, 5)}, {GUARD}]",
        *GROUP,
        "objective.policy_gradient.blame=20",
    ),
    "recipe": ("steps=120",),
}
AUDIT = {
    "constant_judge": judged("constant"),
    "transcript_judge": judged("transcript_only"),
    "permuted_rewards": judged("permuted"),
}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    variant: str
    seed: int
    steps: int
    """Of training, unless the variant says it."""

    @property
    def folder(self) -> Path:
        return RUNS / self.variant / str(self.seed)

    @property
    def finished(self) -> bool:
        return (results.evaluation(RUNS, self.variant, self.seed) / "eval.json").exists()


def sentences() -> Path:
    """The held-out rows, each DRAWS times."""
    rows = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    drawn = [row | {"id": f"{row['id']}/{draw}"} for draw in range(DRAWS) for row in rows]
    write_atomically(path := RUNS / HELD_OUT.name, "".join(f"{json.dumps(row)}\n" for row in drawn).encode())
    return path


def do(run: Run) -> None:
    """Train, going on where it stopped, and evaluate."""
    model = MODEL if run.variant == "base" else run.folder / "model"
    if not model.exists():
        words = [f"steps={run.steps}", *(VARIANTS | AUDIT)[run.variant], f"seed={run.seed}", f"run_dir={run.folder}"]
        resume = ["--resume"] if (run.folder / "recipe.yaml").exists() else []
        elocute("train", RECIPE, *words, "data.eval=null", "evaluation.labels=[]", *resume)
    out = results.evaluation(RUNS, run.variant, run.seed)
    elocute("eval", model, "--data", sentences(), "--labels", LISTENERS, "--ear", "whisper-tiny.en", "--seed", run.seed,
            "--temperature", TEMPERATURE, "-o", out)  # fmt: skip


def main() -> None:
    args = arguments(__doc__, seeds=3, steps=50)
    seeds = range(1, args.seeds + 1)
    runs = [Run(variant, seed, args.steps) for seed in seeds for variant in ("base", *VARIANTS)]
    runs += [Run(judge, seed, args.steps) for seed in seeds for judge in AUDIT]
    if not args.table:
        do_all("runs", do, [run for run in runs if not run.finished], len(runs), args.jobs)
    results.write(RUNS, seeds, args.steps)


if __name__ == "__main__":
    main()
