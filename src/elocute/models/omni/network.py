"""Qwen2.5-Omni's thinker and talker as one network, with the names of the published weights.

    thinker.model, thinker.lm_head     the LLM that writes
    talker                             the decoder that speaks: Qwen2_5OmniTalkerForConditionalGeneration

The audio tower and token2wav are frozen parts of their own (elocute.speech.qwen_omni); vision stays on disk. Positions
count tokens: of text and sound alone, TMRoPE's three are the same.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2_5OmniConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniTalkerForConditionalGeneration,
    Qwen2_5OmniThinkerTextModel,
)

from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.qwen_omni import open_folder, read_part, shapes_of

PARTS = ("thinker.", "talker.")
_FROZEN = ("thinker.audio_tower.", "thinker.visual.")
_HEAD = "thinker.lm_head.weight"


class Thinker(nn.Module):
    """The thinker's LLM and its head. The head may be tied to the embeddings; then it is not in the weights."""

    def __init__(self, config: Qwen2_5OmniConfig):
        super().__init__()
        text = config.thinker_config.text_config
        self.model = Qwen2_5OmniThinkerTextModel(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)


class Omni(nn.Module):
    """Thinker and talker. peft adapts both: LoRA's target modules have the same names in them, unless they say more
    (`talker.model.layers.0.self_attn.q_proj`)."""

    def __init__(self, config: Qwen2_5OmniConfig, source: Shards):
        super().__init__()
        self.config, self.source = config, source
        self.thinker = Thinker(config)
        self.talker = Qwen2_5OmniTalkerForConditionalGeneration(config.talker_config)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "Omni":
        """Load a folder's, on the CPU. dtype "auto": the weights' own. InputError names what does not fit."""
        network = make_network(folder)
        state = {
            f"{part}{name}": tensor
            for part in PARTS
            for name, tensor in read_part(network.source, part, dtype, _FROZEN).items()
        }
        if network.tied:
            state[_HEAD] = state["thinker.model.embed_tokens.weight"]
        network.load_state_dict(state, assign=True)
        if network.tied:
            network.thinker.lm_head.weight = network.thinker.model.embed_tokens.weight
        return network.eval()

    @property
    def tied(self) -> bool:
        """Is the thinker's head its table of embeddings?"""
        return self.config.thinker_config.tie_word_embeddings and _HEAD not in self.source.files

    def get_input_embeddings(self) -> nn.Module:
        """The thinker's."""
        return self.thinker.model.get_input_embeddings()

    def save(self, folder: str | Path) -> None:
        """Write a folder as the published one: the same files, these parts' tensors in the type they now have.

        All else is copied from the folder that this was loaded from; InputError when that is gone.
        """
        if not self.source.folder.is_dir():
            raise InputError(f"{self.source.folder}: gone; what was not loaded from it cannot be saved")
        state = self.state_dict()
        if self.tied:
            state.pop(_HEAD)
        self.source.save(folder, state)

    def gradient_checkpointing_enable(self, how: dict | None = None) -> None:
        """Recompute activations in the backward pass, in train mode."""
        for network in (self.thinker.model, self.talker.model):
            network.gradient_checkpointing_enable(how)

    def enable_input_require_grads(self) -> None:
        """Nothing to do: only reentrant checkpointing needs inputs with gradients."""


def make_network(folder: str | Path) -> Omni:
    """The network without its weights. InputError unless those that lie there are exactly its."""
    config, source = open_folder(folder)
    network = without_weights(lambda: Omni(config, source))
    shapes = {f"{part}{name}": of for part in PARTS for name, of in shapes_of(source, part, _FROZEN).items()}
    if network.tied:
        shapes[_HEAD] = shapes.get("thinker.model.embed_tokens.weight", [])
    check_fit(network, shapes, str(folder))
    return network
