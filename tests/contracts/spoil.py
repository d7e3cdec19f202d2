"""What may be wrong with a published folder."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from elocute.data.shards import INDEX, Shards


def drop(folder: Path, name: str) -> None:
    """Take one tensor out of a folder's weights."""
    source = Shards.open(folder)
    file = folder / source.files[name]
    save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, {"format": "pt"})
    if source.index is not None:
        places = {key: place for key, place in source.files.items() if key != name}
        (folder / INDEX).write_text(json.dumps(source.index | {"weight_map": places}))
