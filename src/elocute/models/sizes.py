"""How large a model is, by the headers of its files or by its config: nothing is loaded, nothing is allocated."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from elocute.data.files import read_json
from elocute.data.shards import Shards, without_weights
from elocute.errors import InputError
from elocute.models.lean import would_fit

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_KEYS_VALUES = re.compile(r"(?:^|\.)[kv]_proj\.")
_JOINED = re.compile(r"(?:^|\.)(?:c_attn|qkv_proj|query_key_value)\.")
_GATE = re.compile(r"(?:^|\.)gate_proj\.")
_BEHIND = re.compile(r"norm|ln_f|head|output")
"""Of what is in no layer, that which comes after them: the last norm and what says words."""
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")

Shape = Sequence[int]


@dataclass(frozen=True)
class Sizes:
    """The shapes of a network's weights by their names, of tied ones once.

    cells: of the parts whose names begin so, how often they are run in a step; all others are once. lean: whether
    decoding in float32 goes through models/lean.py.
    """

    shapes: Mapping[str, Shape]
    cells: tuple[str, int] | None = None
    lean: bool = False

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
    def heads(self) -> set[str]:
        """Names of the tables that say words, the embeddings' where they are tied."""
        tables = [name for name, shape in self.shapes.items() if len(shape) == 2 and not _LAYER.search(name)]
        return set(filter(_BEHIND.search, tables)) or {n for n in tables if tuple(self.shapes[n]) == self.vocabulary}

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
        """Numbers that lean decoding has a second time."""
        maps = (shape for name, shape in self.shapes.items() if _LAYER.search(name) and len(shape) == 2)
        return sum(map(prod, maps)) if self.lean else 0

    @cached_property
    def activations(self) -> int:
        """Numbers that a step's forward pass keeps for its backward pass where all is trained."""
        return self.kept(self.shapes)

    def kept(self, trained: Collection[str]) -> int:
        """Numbers that a step keeps where weights of these names are trained and a gradient goes through all layers:
        what goes into each layer's linear maps that are trained, what comes out of all of them, and what an activation
        function makes of a gate.

        A norm keeps two of its width, but the maps behind it keep the same: on Llama and Qwen2 that comes to what there
        is, on Qwen3, which norms queries and keys, to an eighth less, on OPT, without a gate, to a quarter more.
        """
        total = 0
        for name, shape in self.shapes.items():
            if _LAYER.search(name) and len(shape) in (2, 3):
                *cells, out, into = shape  # three: a cell's own weights each
                one = out + (into if name in trained else 0) + (out if _GATE.search(name) else 0)
                total += one * (cells[0] if cells else self.cells[1] if self._per_cell(name) else 1)
        return total

    def reached(self, trained: Collection[str]) -> "Sizes":
        """Only the layers that a gradient goes through where weights of these names are trained: of each stack those
        from the lowest trained one up, all where something before them is. What each cell of a step is run through
        stands behind the other stacks."""
        places = {name: place for name in self.shapes if (place := _place(name))}
        before = any(name not in places and not _BEHIND.search(name) for name in trained)
        lowest: dict[str, int] = {}
        for stack, number in (places[name] for name in trained if name in places):
            lowest[stack] = min(number, lowest.get(stack, number))

        def goes_through(name: str) -> bool:
            stack, number = places[name]
            behind = self._per_cell(name) and lowest.keys() - {stack}
            return before or bool(behind) or stack in lowest and number >= lowest[stack]

        return replace(self, shapes={name: self.shapes[name] for name in places if goes_through(name)})

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
    inner = config.get("base_config")  # SlamKit's
    lean = would_fit(inner if isinstance(inner, dict) else config, shapes)
    return Sizes(shapes, ("depth_decoder.", codebooks) if codebooks else None, lean)


def sizes_by_config(config: PreTrainedConfig) -> Sizes:
    """Those of one of transformers' causal LMs."""
    network = without_weights(lambda: AutoModelForCausalLM.from_config(config))
    network.tie_weights()
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    return Sizes(shapes, lean=would_fit(config.to_dict(), shapes))


def _place(name: str) -> tuple[str, int] | None:
    """Of a layer's weight: the stack that the layer is in, and its number there."""
    found = _LAYER.search(name)
    return found and (name[: found.start(1)], int(found[1]))


def _by_config_of(folder: Path) -> Sizes:
    try:
        return sizes_by_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}: neither safetensors nor a config of transformers' says its size") from error
