"""Opening a transformers model on disk: nothing is downloaded, no remote code runs, weights are safetensors or GGUF."""

from pathlib import Path
from typing import Any

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
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be opened by {auto_class.__name__}: {first_line}") from error


def open_model(path: str | Path, auto_class: Any, device: str | None, dtype: str = "float32") -> Any:
    """The model in `dtype` and eval mode, on `device` (None: the first GPU if there is one).

    InputError when weights are missing: what starts at random judges at random.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {"use_safetensors": True, "dtype": getattr(torch, dtype), "output_loading_info": True}
    model, info = open_folder(path, auto_class, **options)
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path}: lacks weights of {auto_class.__name__}: {missing[0]} and {len(missing) - 1} more")
    return model.eval().requires_grad_(False).to(device)
