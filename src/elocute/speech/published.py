"""Codecs in transformers' own layout: config.json, model.safetensors (or shards), preprocessor_config.json."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from elocute.data.digest import digest_file
from elocute.data.files import model_type
from elocute.data.shards import INDEX, Shards
from elocute.errors import InputError

EXTRACTOR = "preprocessor_config.json"


class PublishedModel:
    """A model as transformers loads it, frozen, in float32, on the first GPU if there is one; and its files."""

    def __init__(self, model: PreTrainedModel, files: list[Path]):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.files = model.eval().requires_grad_(False).to(self.device), files

    @classmethod
    def load(cls, kind: type[PreTrainedModel], folder: Path, spare: frozenset[str] = frozenset()) -> "PublishedModel":
        """kind: transformers' class. InputError unless every weight but `spare` ones is there, and no other."""
        check_type(folder / "config.json", kind.config_class.model_type)
        source = Shards.open(folder)
        try:
            model, found = kind.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises what the damage happens to provoke
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{folder}: not a {kind.__name__} that transformers can load: {reason}") from error
        if lacking := sorted(set(found["missing_keys"]) - spare):
            raise InputError(f"{folder}: the weights lack {lacking[0]}")
        if strange := sorted(set(found["unexpected_keys"]) - spare):
            raise InputError(f"{folder}: the weights hold {strange[0]}, for which config.json has no place")
        names = ["config.json", *([INDEX] if source.index is not None else []), *sorted(set(source.files.values()))]
        return cls(model, [folder / name for name in [*names, EXTRACTOR] if (folder / name).is_file()])

    def save(self, folder: str | Path) -> None:
        """Copy the files, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)

    def digest(self, algorithm: str) -> str:
        """Of the algorithm's name and all files but the extractor's."""
        said = [algorithm, *(digest_file(file) for file in self.files if file.name != EXTRACTOR)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def extractor(self) -> dict:
        """preprocessor_config.json, empty where there is none. InputError when it is not JSON."""
        file = self.files[0].parent / EXTRACTOR
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{file}: expected a JSON object: {error}") from error


def check_type(config: Path, expected: str) -> None:
    """InputError for another model's config: transformers would fill what is missing with noise."""
    if not config.is_file():
        raise InputError(f"{config}: not there: expected the folder of a model of type {expected}")
    if (found := model_type(config.parent)) != expected:
        raise InputError(f"{config}: model_type: expected {expected}, got {found!r}")
