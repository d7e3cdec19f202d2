"""Opening a transformers model on disk: nothing is downloaded, no remote code runs, weights are safetensors or GGUF."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from elocute.errors import InputError


def open_folder(path: str | Path, auto_class: Any, **options: Any) -> Any:
    """`auto_class.from_pretrained` on a local folder or `.gguf` file. Raises InputError, naming it, when it cannot."""
    path = Path(path)
    folder = path
    if path.suffix == ".gguf":
        folder, options = path.parent, options | {"gguf_file": path.name}
    elif not (path / "config.json").is_file():
        raise InputError(f"{path}: not a model folder (it has no config.json)")
    try:
        return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". If you were")[0]
        if why.startswith("Unrecognized configuration class"):  # transformers goes on with Python's name for it
            why = "it is another kind of model"
        found = f" (its config.json says: {_kind(path)})" if folder is path else ""
        raise InputError(f"{path}: cannot be opened by {auto_class.__name__}: {why}{found}") from error


def open_model(path: str | Path, auto_class: Any, device: str | None, dtype: str = "float32") -> Any:
    """The model in `dtype` and eval mode, on `device` (None: the first GPU if there is one).

    InputError when weights are missing or of another size: what starts at random judges at random.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if pickled := _pickled(Path(path)):
        raise InputError(
            f"{path}: cannot be opened: its weights are pickled ({pickled}), and safetensors are expected; "
            "docs/judges.md says how to convert them"
        )
    options = {"use_safetensors": True, "dtype": getattr(torch, dtype), "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # they are named below
    model, info = open_folder(path, auto_class, **options)
    others = [name for name, *_ in info["mismatched_keys"]]  # for example a classifier of another number of labels
    for why, names in [("lacks weights of", info["missing_keys"]), ("has weights of other sizes than", others)]:
        if names:
            raise InputError(f"{path}: {why} {auto_class.__name__}: {min(names)} and {len(names) - 1} more")
    return model.eval().requires_grad_(False).to(device)


def _kind(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return " ".join(config.get("architectures") or [config["model_type"]])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return "nothing that can be read"


def _pickled(folder: Path) -> str | None:
    """The name of pickled weights in a folder that has no others."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((file.name for file in sorted(folder.glob("pytorch_model*.bin"))), None)
