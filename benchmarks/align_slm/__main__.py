"""Does feedback make a textless model tell better stories? Align-SLM's ablation on the starter's unit LM.

    python -m benchmarks.align_slm --jobs 2

Variants, all from starter/unit_lm, on the same prompts, for as many steps: continued training on the true
continuations; perplexity feedback; score feedback, one round and two. Each is measured on stories of held-out tales:
likelihood suites, and continuations that another judge reads than the one it was trained with. What is finished is not
done again. Needs starter/build/suites (`python -m starter.make_suites`) and the local judges
(docs/continuation-judges.md). The table: benchmarks/results/align_slm.json, and in docs/rounds.md.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.align_slm import results
from benchmarks.runs import arguments, do_all, elocute

RUNS = Path("runs/align_slm_variants")
RECIPE = "recipes/starter/align_slm.yaml"
MODEL = Path("starter/unit_lm")
SUITES = Path("starter/build/suites")
HELD_OUT = "starter/stories/test.jsonl"

SUPERVISED = [
    "objective={kind: hybrid, mixing: {kind: fixed, value: 0}, sft: {scope: speech}}",
    "rounds=null",
    "rewards=[]",
]
PERPLEXITY = [
    "rewards=[{kind: perplexity}, {kind: relatedness, name: judge, weight: 0}]",
    "rounds={count: 1, rule: best_worst, candidates: 5, pairs_per_prompt: 3, dev_share: 0.15}",
]


@dataclass(frozen=True)
class Chain:
    """What one command trains: a model a variant."""

    seed: int
    verb: str
    name: str
    changes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return RUNS / str(self.seed) / self.name

    @property
    def models(self) -> dict[str, Path]:
        if self.name == "score":
            return {f"score{'' if n == 1 else f'_round{n}'}": self.folder / f"round-{n}/train/model" for n in (1, 2)}
        return {self.name: self.folder / "model"}

    @property
    def finished(self) -> bool:
        return all(finished(self.seed, variant) for variant in self.models)


def evaluation(seed: int, variant: str) -> Path:
    return RUNS / str(seed) / "eval" / variant


def likelihoods(seed: int, variant: str) -> Path:
    """Where the suites' results are: the base model's have no seed."""
    return RUNS / "base" if variant == "base" else evaluation(seed, variant)


def finished(seed: int, variant: str) -> bool:
    return (evaluation(seed, variant) / "scored.json").exists()


def do(chain: Chain) -> None:
    """Train, going on where it stopped, and evaluate."""
    words = [chain.verb, RECIPE, *chain.changes, f"seed={chain.seed}", f"run_dir={chain.folder}"]
    elocute(*words, *(["--resume"] if (chain.folder / "recipe.yaml").exists() else []))
    for variant, model in chain.models.items():
        evaluate(chain.seed, variant, model)


def evaluate(seed: int, variant: str, model: Path) -> None:
    """Suites, then one continuation of every held-out prompt, judged by all judges."""
    if finished(seed, variant):
        return
    out = evaluation(seed, variant)
    for suite, data in results.SUITES.items():
        found = likelihoods(seed, variant) / suite
        if not (found / "eval.json").exists():
            elocute("eval", model, "--suite", suite, "--data", SUITES / data, "-o", found)
    recipe = [RECIPE, f"model={model}", f"seed={seed}"]
    judges = "rewards=[{kind: relatedness, name: judge}, {kind: coherence, weight: 0}]"
    elocute("sample", *recipe, "--data", HELD_OUT, "-n", 1, "-o", out / "told", "--resume")
    told, scored = out / "told/candidates.jsonl", out / "scored.jsonl"
    elocute("score", *recipe, judges, "--candidates", told, "-o", scored, "--resume")
    results.condense(scored)


def main() -> None:
    args = arguments(__doc__, seeds=3)
    seeds = range(1, args.seeds + 1)
    if not args.table:
        evaluate(seeds[0], "base", MODEL)  # its likelihoods are all seeds'
        do_all("base", lambda seed: evaluate(seed, "base", MODEL), seeds[1:], len(seeds), args.jobs)
        chains = [
            Chain(seed, *rest)
            for seed in seeds
            for rest in (
                ("rounds", "score", ()),
                ("rounds", "ppl", tuple(PERPLEXITY)),
                ("train", "continued", tuple(SUPERVISED)),
            )
        ]
        left = [chain for chain in chains if not chain.finished]
        do_all("trainings", do, left, len(chains), args.jobs)
    folders = {v: [(likelihoods(seed, v), evaluation(seed, v)) for seed in seeds] for v in results.VARIANTS}
    results.write(folders, seeds)


if __name__ == "__main__":
    main()
