"""Models that speak frame by frame, a frame's cells one after the other: a backbone, and a depth decoder.

The backbone reads whole frames, and its head says the first cell of the next one. The depth decoder, a small network,
reads that state of the backbone and the frame's cells so far, and says each further cell. When answers are scored, the
backbone runs as any other network does (models/one_stream.py), and every frame that has a selected cell is one row of
the depth decoder's batch: no loop goes over frames.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DynamicCache, MimiConfig, PreTrainedConfig

from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.models import one_stream
from elocute.models.batch import Batch, States
from elocute.models.speech_lm import SpeechLM


class FrameLM(SpeechLM):
    """A speech LM with a depth decoder. Each kind adds `embed`, `trunk`, `depth` and `depth_heads`.

    folder: where it was loaded from; `streams` is (cells of a frame,).
    """

    folder: Path

    def save(self, folder: str | Path) -> None:
        """Write the folder again as it was, with the network's weights as they are now (LoRA merged).

        InputError when it has changed since, so that it has no place for some of them.
        """
        shards, state = Shards.open(self.folder), self.plain_model().state_dict()
        written = {name: tensor for name, tensor in state.items() if name in shards.files}
        places = {tensor.data_ptr() for tensor in written.values()}  # of tied weights, one name is enough
        if lost := sorted(name for name, tensor in state.items() if tensor.data_ptr() not in places):
            raise InputError(f"{self.folder}: its weights have no {lost[0]}, which was loaded from there")
        shards.save(folder, written)

    def depth_heads(self) -> list[torch.nn.Module]:
        """What says a frame's cells after the first, one by one."""
        raise NotImplementedError

    def depth(self, hidden: torch.Tensor, cells: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The states [n, m, D'] that say the cell after each of a frame's first m cells, int64 [n, m].

        hidden [n, D]: the backbone's states that say the frames' first cells. cache: keeps what was read; `cells` are
        then those that it has not read.
        """
        raise NotImplementedError

    def beside(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the network reads beside an answer's cells, int64 [prompts, 2, m]: of its first step, of each later one.

        Nothing, m = 0, where it hears nothing while it speaks.
        """
        return torch.zeros(len(prompts), 2, 0, dtype=torch.long)

    def heads(self) -> list[torch.nn.Module]:
        """The backbone's, then the depth decoder's."""
        return [self.head(), *self.depth_heads()]

    def hidden(self, input_ids: torch.Tensor | None = None, **inputs):
        """Run the backbone; input_ids: frames [B, T, m]."""
        if input_ids is not None:
            inputs["inputs_embeds"] = self.embed(input_ids)
        return super().hidden(**inputs)

    def prompt_inputs(self, prompts: Sequence[torch.Tensor], device) -> dict[str, torch.Tensor]:
        """Prompts [P, m] on the right of padding, as embeddings."""
        ids, mask = one_stream.padded(prompts, device)
        return {"inputs_embeds": self.embed_prompt(ids), "attention_mask": mask}

    def embed_prompt(self, cells: torch.Tensor) -> torch.Tensor:
        """A prompt's cells [B, P, m] as the network reads them."""
        return self.embed(cells)

    def speak(self, hidden: torch.Tensor, cells: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """`depth`, in the type that training computes in; the states come in the heads' type."""
        with torch.autocast(hidden.device.type, self.compute, enabled=self.compute is not None):
            return self.depth(hidden, cells, cache).to(hidden.dtype)

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells: a frame's first ones, then cell by cell the others."""
        [width] = self.streams
        frames = batch.answer_ids.view(len(batch.answer_ids), -1, width)
        beside = self.beside(batch.prompts).to(frames.device)[batch.owner]
        inputs = replace(batch, answer_ids=_joined(frames, beside), answer_mask=batch.answer_mask[:, ::width])
        _, before = one_stream.run(self, inputs, share_prompts=share_prompts)
        step, number = batch.columns // width, batch.columns % width
        [first] = (number == 0).nonzero(as_tuple=True)
        found = [States(before[batch.rows[first], step[first]], self.head(), first)]
        [later] = number.nonzero(as_tuple=True)
        if not len(later):
            return found
        place, which = (batch.rows[later] * frames.shape[1] + step[later]).unique(return_inverse=True)
        spoken = self.speak(before.flatten(0, 1)[place], frames.flatten(0, 1)[place, :-1])
        for cell, head in enumerate(self.depth_heads()):
            [mine] = (number[later] == cell + 1).nonzero(as_tuple=True)
            found.append(States(spoken[which[mine], cell], head, later[mine]))
        return found

    def decoders(self, prompts: Sequence[torch.Tensor], group_size: int, cursors: Sequence) -> Iterator["Decoder"]:
        """What grows `group_size` answers to each prompt."""
        yield Decoder(self, prompts, group_size)


class Decoder(one_stream.Decoder):
    """Answers that grow frame by frame; `hidden` is what says a frame's first cell, `deeper` gives the others."""

    def __init__(self, lm: FrameLM, prompts: Sequence[torch.Tensor], group_size: int):
        super().__init__(lm, prompts, group_size)
        self.heads = lm.heads()
        self.first = True
        self.beside = lm.beside(prompts).to(self.mask.device).repeat_interleave(group_size, 0)
        self.frame = DynamicCache()

    def deeper(self, cells: torch.Tensor) -> torch.Tensor:
        """What says the next cell [rows, D'], of the frame's cells so far int64 [rows, 1 …]."""
        if cells.shape[1] == 1:
            self.frame = DynamicCache()
        return self.lm.speak(self.hidden[0], cells[:, -1:], self.frame)[:, -1]

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next frames, int64 [rows, cells]."""
        beside = self.beside[:, 0 if self.first else 1]
        self.first = False
        super().step(torch.cat([ids, beside], -1)[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        super().keep(rows)
        self.beside = self.beside[rows]


class StackedHead(torch.nn.Linear):
    """One codebook's head of those that lie in one tensor: linear, without bias; its weight [V, D] is a view of theirs.

    It is no part of the network, which already has the tensor.
    """

    bias = None

    def __init__(self, view: Callable[[], torch.Tensor]):
        torch.nn.Module.__init__(self)
        self.view = view

    @property
    def weight(self) -> torch.Tensor:
        return self.view()


def _joined(frames: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Frames [B, T, m] and what stands beside the first and the later ones [B, 2, k], as [B, T, m + k]."""
    later = beside[:, 1:].expand(-1, frames.shape[1] - 1, -1)
    return torch.cat([frames, torch.cat([beside[:, :1], later], 1)], -1)


def load_config(folder: Path, kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A folder's config.json as transformers reads it. InputError when it is none or says another model."""
    file = folder / "config.json"
    try:
        if (said := json.loads(file.read_text()).get("model_type")) != kind.model_type:
            raise InputError(f"{file}: model_type: expected {kind.model_type}, got {said!r}")
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{file}: not understood: {' '.join(str(error).split())}") from error


def check_codec(folder: Path, *, codebooks: int, codes: int, codec: MimiConfig) -> None:
    """InputError unless a codec has the codebooks that a model speaks, and no codes for which it has no place."""
    if codebooks > codec.num_quantizers:
        raise InputError(f"{folder}: the codec has {codec.num_quantizers} codebooks, the model speaks {codebooks}")
    if codes < codec.codebook_size:
        raise InputError(f"{folder}: the codec has {codec.codebook_size} codes, the model's vocabulary {codes}")
