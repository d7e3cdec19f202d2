"""A run's folder: what is in it, when it may be used, and how its metrics file survives a kill."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from elocute.data.digest import digest_path
from elocute.data.files import write_atomically, writing
from elocute.errors import InputError
from elocute.recipe import Recipe, dump_recipe
from elocute.recipe.rewards import without_means

FREE_TO_CHANGE = (
    "run_dir", "steps", "checkpoint", "trackers", "report", "samples_every", "memory_check",
    "optim.micro_batch", "gradient_checkpointing", "evaluation.batch",
)  # fmt: skip
"""Keys that may differ when a run is continued; any other would make it another run. The last three change rounding
only: with them a run goes on that did not fit into memory (fitting.py)."""


class RunFolder:
    """Paths of one run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.evaluation = self.path / "eval.json"
        self.environment = self.path / "environment.json"

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """InputError unless the folder is free for a new run, or `recipe` continues the one in it."""
        started, model = self.recipe.exists(), Path(recipe.model).resolve()
        if model in (self.path.resolve(), *self.path.resolve().parents):
            raise InputError(
                f"{self.path}: run_dir: expected a folder outside of {recipe.model}: a model is saved whole"
            )
        if not resume:
            if self.path.exists() and any(self.path.iterdir()):
                raise InputError(f"{self.path}: run_dir: not empty; --resume continues it, or choose another folder")
        elif started:
            self._check_same(recipe)
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path}: run_dir: not empty and no run of elocute; choose another folder")

    def begin(self, recipe: Recipe) -> None:
        """Make the folder and write the recipe into it, and the environment unless it is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        # First: it makes the folder a run that can be resumed.
        write_atomically(self.recipe, dump_recipe(recipe).encode())
        if not self.environment.exists():
            self.write_environment(recipe)

    def create(self, recipe: Recipe) -> None:
        """The same, and the folders of a training."""
        self.begin(recipe)
        for folder in (self.samples, self.checkpoints):
            folder.mkdir(exist_ok=True)

    def _check_same(self, recipe: Recipe) -> None:
        old, new = _without_means(_with_defaults(self.recipe)), _without_means(recipe.model_dump(mode="json"))
        for key in new:
            if old.get(key) != new[key]:
                name, was, now = _first_difference(key, old.get(key), new[key])
                raise InputError(
                    f"{self.recipe}: {name}: the run was started with {was!r}, the recipe now says {now!r}"
                )
        if self.environment.exists():
            for path, known in json.loads(self.environment.read_text()).get("digests", {}).items():
                if digest_path(path) != known:
                    raise InputError(f"{path}: not what it was when the run was started; start another run")

    def write_environment(self, recipe: Recipe) -> None:
        """Versions, machine, digests of model and data: what a reader needs to trust or repeat the run."""
        names = ("elocute", "torch", "transformers", "accelerate", "peft", "numpy", "pocketsphinx")
        data = [file for file in (recipe.data.train, recipe.data.eval, recipe.data.dev) if file]
        values = {
            "command": shlex.join(["elocute", *sys.argv[1:]]),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in names},
            "digests": {str(path): digest_path(path) for path in (recipe.model, *data)},
        }
        write_atomically(self.environment, (json.dumps(values, indent=2) + "\n").encode())

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step` (and a half-written last one): those steps will be made again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            if values["step"] > step:
                break
            kept.append(line)
        write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())

    def append_metrics(self, values: dict) -> None:
        """RunError when it cannot be written: at most its beginning is there, which `cut_metrics` drops."""
        with writing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _with_defaults(file: Path) -> dict:
    """The recipe that a run was started with; keys that came into the schema since have their defaults."""
    values = yaml.safe_load(file.read_text())
    try:
        return Recipe.model_validate(values).model_dump(mode="json")
    except ValidationError:  # as it stands: the difference that follows says what is not understood
        return values


def _without_means(recipe: dict) -> dict:
    """A recipe without what is free to change, and what changes how something is done and not its result."""
    evaluation, rollout = (recipe.get(section) or {} for section in ("evaluation", "rollout"))
    heard = {
        "ear": without_means(evaluation.get("ear")),
        "labels": [without_means(entry) for entry in evaluation.get("labels") or []],
    }
    served = {"vllm": rollout.get("vllm") is not None}  # by whom, not where
    kept = recipe | {"evaluation": evaluation | heard, "rollout": rollout | served}
    for section, _, name in (key.rpartition(".") for key in FREE_TO_CHANGE):
        if section:
            kept[section] = {key: value for key, value in (kept.get(section) or {}).items() if key != name}
        else:
            kept.pop(name, None)
    return kept


def _first_difference(name: str, old, new) -> tuple[str, object, object]:
    """Down to the key that differs: ("optim.lr", 1e-4, 2e-4)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            if old.get(key) != new[key]:
                return _first_difference(f"{name}.{key}", old.get(key), new[key])
    return name, old, new
