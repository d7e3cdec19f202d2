"""`elocute eval --suite swuggy | sblimp | storycloze | salmon | continuation`: a model folder and data, into a folder.

The folder gets eval.json (every number with n and its 95 % interval; seeds, normalisation, digests, versions), and
score files, or continuations to read and listen to. What can be wrong is found before the model is loaded.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder, digest_path
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.evaluation import continuation, pair_accuracy
from elocute.evaluation.continuation_suite import (
    METRICS,
    continue_all,
    judge,
    log_probs,
    measure,
    read_prompts,
    why_unscored,
    write_continuations,
)
from elocute.evaluation.evaluate import (
    check_target,
    describe_ear,
    digest_rows,
    ear_option,
    to_json,
    versions,
    write_eval,
)
from elocute.evaluation.independent import check_independent, trained_against
from elocute.evaluation.likelihood import Normalisation, file_logprobs, normalised
from elocute.evaluation.pair_accuracy import accuracies, table
from elocute.evaluation.suites import SALMON_PARTS, SUITES, Part, write_scores
from elocute.models import UnitLM, load_speaker
from elocute.progress import Progress
from elocute.recipe import load_rewards
from elocute.recipe.ears import EarSpec
from elocute.recipe.rewards import RewardSpec
from elocute.rewards.build import build_ear, build_reward
from elocute.rewards.identity import digests, identity
from elocute.rewards.outcome import Reward
from elocute.rewards.text_likelihood import TextLM
from elocute.rollout import Sampling

PACKAGED_TEXT_LM = "smollm2"

_SAMPLING = {"--temperature", "--top-k", "--top-p", "--max-new-tokens", "--seed"}
_GENERATIVE = {"--rows", "--ear", "--vocabulary", "--allow-trained"} | _SAMPLING
OPTIONS = {
    "spoken-qa": _GENERATIVE,
    **dict.fromkeys(SUITES, {"--normalisation"}),
    "continuation": _GENERATIVE | {"--seconds", "--judge", "--text-lm"},
    "reading": _GENERATIVE - {"--top-k", "--top-p"} | {"--labels"},
}
"""The options that are a suite's own."""


@dataclass(frozen=True)
class Job:
    """A checked evaluation. about: what is going to be evaluated, for --dry-run; run: does it, gives eval.json."""

    about: dict
    run: Callable[[Progress], dict]


def check_options(suite: str, given: Mapping[str, object]) -> None:
    """InputError for an unknown suite, or for an option (not None) that means nothing to it."""
    if suite not in OPTIONS:
        raise InputError(f"--suite {suite}: expected {', '.join(OPTIONS)}")
    if strange := [name for name, value in given.items() if value is not None and name not in OPTIONS[suite]]:
        raise InputError(f"{strange[0]}: not an option of --suite {suite}; it has {', '.join(sorted(OPTIONS[suite]))}")


# ---- likelihood ----------------------------------------------------------------------------------------------------


def likelihood_job(target: Path, suite: str, data: Path, out: Path, normalisation: str) -> Job:
    """Checks options, model folder and the suite's layout."""
    if normalisation not in get_args(Normalisation):
        raise InputError(f"--normalisation {normalisation}: expected {' or '.join(get_args(Normalisation))}")
    model, parts = check_target(target, out), SUITES[suite].read(data)
    about = {"model": str(model)} | {
        part.name: f"{len(part.files)} files, {'no gold' if part.pairs is None else f'{len(part.pairs)} pairs'}"
        for part in parts
    }
    return Job(about, partial(evaluate_likelihood, model, suite, data, parts, out, normalisation))


def evaluate_likelihood(
    model: Path,
    suite: str,
    data: Path,
    parts: Sequence[Part],
    out: Path,
    normalisation: Normalisation,
    progress: Progress = lambda *_: None,
) -> dict:
    """Score every file of a suite; returns eval.json's content. ZeroSpeech's score files are `out`/FOLDER/PART.txt."""
    lm = load_speaker(model)
    if not isinstance(lm, UnitLM):
        raise InputError(f"{model}: --suite {suite}: expected a unit LM, this model's speech has text between it")
    files = [file for part in parts for file in part.files]
    found = file_logprobs(lm, EncodedAudio(lm.codec), files, progress=progress)
    scores = {file: normalised(logprob, normalisation) for file, logprob in found.items()}
    kind = SUITES[suite]
    tables = [part.gold for part in parts if part.gold is not None]
    values = _header(suite, model, lm.codec.digest, _digest(data, [*files, *tables])) | {
        "normalisation": normalisation,
        "seeds": {"bootstrap": pair_accuracy.SEED},
        "utterances": len(found),
        "tokens": sum(tokens for _, tokens in found.values()),
        "result": {},
        "tables": {},
        "score_files": [],
    }
    for part in parts:
        scored = f"{kind.folder}/{part.name}.txt"
        write_scores(out / scored, {file: scores[file] for file in part.files})
        values["score_files"].append(scored)
        if part.pairs is not None:
            values["result"] |= to_json(accuracies(kind, part, scores))
            if kind.table is not None:
                values["tables"][f"{part.name}_by_{kind.table}"] = to_json(table(kind, part, scores))
    if suite == "salmon":
        values["missing_parts"] = sorted(set(SALMON_PARTS) - {part.name for part in parts})
    write_eval(out / "eval.json", values)
    return values


# ---- continuation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listeners:
    """Who listens and judges. judges: a YAML file with `rewards`, or None; text_lm: a folder, "smollm2", or None.

    allow_trained: they may have decided the run.
    """

    ear: EarSpec
    judges: Path | None = None
    text_lm: str | None = None
    allow_trained: bool = False

    def evaluators(self) -> dict[str, dict]:
        """Option → who it names, for `check_independent`. GenPPL and the perplexity reward of one LM are one judge."""
        specs = [] if self.judges is None else load_rewards(self.judges)
        found = ear_option(self.ear) | {f"--judge {spec.name}": spec.model_dump(mode="json") for spec in specs}
        path = None if self.text_lm == PACKAGED_TEXT_LM else self.text_lm
        return found | ({} if self.text_lm is None else {"--text-lm": {"kind": "perplexity", "path": path}})


@dataclass(frozen=True)
class Continuing:
    """How prompts are continued. seconds: of each sound file; rows: only the first n prompts, or None."""

    sampling: Sampling
    seed: int
    seconds: float
    rows: int | None = None


def continuation_job(target: Path, data: Path, out: Path, listeners: Listeners, how: Continuing) -> Job:
    """Checks options, model folder and prompts; opens ear, judges and text LM, so that they are known to work."""
    model = check_target(target, out)
    check_independent(model, listeners.evaluators(), allowed=listeners.allow_trained)
    prompts = read_prompts(data, how.seconds, how.rows)
    with _judges(listeners.judges, prompts), closing(build_ear(listeners.ear)):
        _text_lm(listeners.text_lm)
    about = {"model": str(model), "prompts": len(prompts)}
    return Job(about, partial(evaluate_continuation, model, data, prompts, out, listeners, how))


def evaluate_continuation(
    model: Path,
    data: Path,
    prompts: Sequence[Example],
    out: Path,
    listeners: Listeners,
    how: Continuing,
    progress: Progress = lambda *_: None,
) -> dict:
    """Continue every prompt, hear and measure; returns eval.json's content. `out` gets continuations.jsonl and WAVs."""
    with closing(build_ear(listeners.ear)) as ear, _judges(listeners.judges, prompts) as rewards:
        text_lm = _text_lm(listeners.text_lm)
        lm = load_speaker(model)
        found = continue_all(lm, EncodedAudio(lm.codec), prompts, ear, how.sampling, how.seed, out, progress=progress)
        outcomes = judge([reward for _, reward in rewards.values()], found, progress)
        judges = {
            name: {"range": [reward.low, reward.high]} | identity(spec, reward)
            for name, (spec, reward) in rewards.items()
        }
    alone, cut_alone = (None, 0) if text_lm is None else log_probs(text_lm, found, with_prompt=False)
    joined, cut_joined = (None, 0) if text_lm is None else log_probs(text_lm, found, with_prompt=True)
    write_continuations(out / "continuations.jsonl", found, outcomes, alone)
    recordings = [ref.path for one in prompts for ref in one.audios]
    digest = _digest(data, recordings) if data.is_dir() else digest_rows(data, prompts)
    values = _header("continuation", model, lm.codec.digest, digest) | {
        "normalisation": "words: elocute.data.normalise; gen_ppl: mean over tokens, without the prompt; "
        "gen_ppl_slamkit: mean of the utterances' means, prompt and continuation as one text",
        "seeds": {"sampling": how.seed, "bootstrap": continuation.SEED},
        "prompt_seconds": how.seconds,
        **asdict(how.sampling),
        "versions": versions(listeners.ear),
        "ear": describe_ear(listeners.ear),
        "ear_digests": digests(listeners.ear),
        "trained_against": trained_against(model, listeners.evaluators()),
        "text_lm": listeners.text_lm,
        "text_lm_digest": None if text_lm is None else digest_path(text_lm.path),
        "text_lm_cut": {"gen_ppl": cut_alone, "gen_ppl_slamkit": cut_joined},
        "result": to_json(measure(found, outcomes, alone, joined)),
        "judges": {name: judges[name] | {"unscored": reasons} for name, reasons in why_unscored(outcomes).items()},
    }
    write_eval(out / "eval.json", values)
    return values


@contextmanager
def _judges(path: Path | None, prompts: Sequence[Example]) -> Iterator[dict[str, tuple[RewardSpec, Reward]]]:
    """The rewards of a file by name. InputError for one that cannot judge these prompts once heard."""
    rewards: dict[str, tuple[RewardSpec, Reward]] = {}
    heard = [replace(prompt, question_text="words") for prompt in prompts]
    try:
        for spec in [] if path is None else load_rewards(path):
            if spec.name in rewards.keys() | set(METRICS):
                raise InputError(f"{path}: rewards: {spec.name!r} already names a metric; give it a `name` of its own")
            reward = build_reward(spec)
            rewards[spec.name] = spec, reward
            if hasattr(reward, "check"):
                reward.check(heard)
        yield rewards
    finally:
        for _, reward in rewards.values():
            if hasattr(reward, "close"):
                reward.close()


def _text_lm(name: str | None) -> TextLM | None:
    return None if name is None else TextLM(None if name == PACKAGED_TEXT_LM else name)


# ---- eval.json -----------------------------------------------------------------------------------------------------


def _header(suite: str, model: Path, codec_digest: str, data_digest: str) -> dict:
    return {
        "suite": suite,
        "model": str(model),
        "model_digest": digest_folder(model),
        "codec_digest": codec_digest,
        "data_digest": data_digest,
        "versions": versions(),
    }


def _digest(data: Path, files: Sequence[Path]) -> str:
    """Over the names and contents of the folder's files that are read; where it lies does not matter."""
    lines = (f"{digest_file(file)} {file.relative_to(data)}\0" for file in sorted(set(files)))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
