"""How large a model is, by the headers of its files or by its config: nothing is loaded, nothing is allocated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from elocute.data.files import read_json
from elocute.data.shards import Shards, without_weights
from elocute.errors import InputError

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_KEYS_VALUES = re.compile(r"(?:^|\.)[kv]_proj\.")
_JOINED = re.compile(r"(?:^|\.)(?:c_attn|qkv_proj|query_key_value)\.")
_GATE = re.compile(r"(?:^|\.)gate_proj\.")
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")

Shape = Sequence[int]


@dataclass(frozen=True)
class Sizes:
    """The shapes of a network's weights by their names, of tied ones once.

    cells: of the parts whose names begin so, how often they are run in a step; all others are once.
    """

    shapes: Mapping[str, Shape]
    cells: tuple[str, int] | None = None

    @cached_property
    def weights(self) -> int:
        """Numbers."""
        return sum(map(prod, self.shapes.values()))

    @cached_property
    def layers(self) -> int:
        return len({name[: found.end()] for name in self.shapes if (found := _LAYER.search(name))})

    @cached_property
    def in_layers(self) -> int:
        """Numbers in layers."""
        return sum(prod(shape) for name, shape in self.shapes.items() if _LAYER.search(name))

    @cached_property
    def vocabulary(self) -> tuple[int, int]:
        """The largest table of embeddings, or head: [V, D]."""
        tables = [shape for name, shape in self.shapes.items() if len(shape) == 2 and not _LAYER.search(name)]
        return tuple(max(tables, key=prod, default=(0, 0)))

    @cached_property
    def keys_values(self) -> int:
        """Numbers that decoding keeps of a step, in all layers."""
        total = 0
        for name, shape in self.shapes.items():
            if len(shape) == 2 and not self._per_cell(name):
                if _KEYS_VALUES.search(name):
                    total += shape[0]
                elif _JOINED.search(name):  # queries, keys and values: as wide as its input are the queries alone
                    total += max(shape) - min(shape)
        return total

    @cached_property
    def widest(self) -> int:
        """Numbers of a step that go into, or come out of, the largest map of a layer."""
        return max((max(s) for name, s in self.shapes.items() if _LAYER.search(name) and len(s) == 2), default=0)

    @cached_property
    def joined(self) -> int:
        """Numbers that decoding in float32 has a second time: of layers of Llama's or Qwen2's kind (models/lean.py)."""
        maps = {name: shape for name, shape in self.shapes.items() if _LAYER.search(name) and len(shape) == 2}
        lean = any(_GATE.search(name) for name in maps) and not any("q_norm" in name for name in self.shapes)
        return sum(map(prod, maps.values())) if lean else 0

    @cached_property
    def activations(self) -> int:
        """Numbers that a step's forward pass keeps for its backward pass: what goes into each layer's linear maps, what
        comes out of them, and what an activation function makes of a gate.

        A norm keeps two of its width, but the maps behind it keep the same: on Llama and Qwen2 that comes to what there
        is, on Qwen3, which norms queries and keys, to an eighth less, on OPT, without a gate, to a quarter more.
        """
        total = 0
        for name, shape in self.shapes.items():
            if _LAYER.search(name) and len(shape) == 2:
                kept = sum(shape) + (shape[0] if _GATE.search(name) else 0)
                total += kept * (self.cells[1] if self._per_cell(name) else 1)
            elif _LAYER.search(name) and len(shape) == 3:  # a cell's own weights each
                total += shape[0] * sum(shape[1:])
        return total

    def _per_cell(self, name: str) -> bool:
        return self.cells is not None and name.startswith(self.cells[0])


def sizes_of(folder: str | Path, apart: Sequence[str] = ()) -> Sizes:
    """A model folder's. InputError where its files do not say.

    apart: how names begin of weights that lie in the folder and are not the network's.
    """
    folder = Path(folder)
    if not any(folder.glob("*.safetensors")):
        return _by_config_of(folder)
    config = read_json(folder / "config.json", "the config of a model")
    shapes = Shards.open(folder).shapes("", skip=tuple(apart))
    shapes = {name: shape for name, shape in shapes.items() if not _COMPUTED.search(name)}
    if further := config.get("num_nextn_predict_layers"):  # the last layers may say nothing: then they are not trained
        main = config["num_hidden_layers"] - further
        shapes = {n: s for n, s in shapes.items() if not ((found := _LAYER.search(n)) and int(found[1]) >= main)}
    codebooks = config.get("num_codebooks")
    return Sizes(shapes, ("depth_decoder.", codebooks) if codebooks else None)


def sizes_by_config(config: PreTrainedConfig) -> Sizes:
    """Those of one of transformers' causal LMs."""
    network = without_weights(lambda: AutoModelForCausalLM.from_config(config))
    network.tie_weights()
    return Sizes({name: tuple(weight.shape) for name, weight in network.named_parameters()})


def _by_config_of(folder: Path) -> Sizes:
    try:
        return sizes_by_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}: neither safetensors nor a config of transformers' says its size") from error
