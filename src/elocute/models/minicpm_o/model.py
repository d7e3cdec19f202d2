"""MiniCPM-o 2.6's speech path as one network: a published folder's parts, each alone or together, and back again.

    llm                       Qwen2ForCausalLM
    apm                       Whisper's encoder, `audio_projection_layer` behind it
    tts                       ConditionalChatTTS, without the DVAE (see elocute.speech.chat_tts)

Vision (`vpm`, `resampler`), the DVAE and parts that were not asked for stay on disk; `save` copies them.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from elocute.data.shards import Shards, build
from elocute.errors import InputError
from elocute.models.minicpm_o.audio import AudioEncoder, AudioProjector
from elocute.models.minicpm_o.config import MiniCPMOConfig
from elocute.models.minicpm_o.tts import ConditionalChatTTS

PARTS = ("llm", "apm", "audio_projection_layer", "tts")
_CARRIED = ("vpm.", "resampler.", "tts.dvae.", "tts.model.embed_tokens.weight")
"""Names that no part here has: vision, the codec, and a table that the original keeps and never uses."""


class MiniCPMO(nn.Module):
    """The parts that were loaded, under the prefixes of the published weights; those that were not are None.

    Its state_dict has the published names. peft adapts it as any network: LoRA's target modules are found in the LLM,
    the audio encoder and the TTS decoder alike, unless the names say more (`tts.model.layers…`).
    """

    def __init__(self, config: MiniCPMOConfig, source: Shards, parts: dict[str, nn.Module]):
        super().__init__()
        self.config, self.source = config, source
        self.llm: Qwen2ForCausalLM | None = parts.get("llm")
        self.apm: AudioEncoder | None = parts.get("apm")
        self.audio_projection_layer: AudioProjector | None = parts.get("audio_projection_layer")
        self.tts: ConditionalChatTTS | None = parts.get("tts")

    @classmethod
    def load(
        cls, folder: str | Path, parts: Iterable[str] = PARTS, *, dtype: torch.dtype | str = torch.float32
    ) -> "MiniCPMO":
        """Load parts of a folder, on the CPU. dtype "auto": the weights' own. InputError names what does not fit."""
        config, source = open_folder(folder)
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"parts: expected {', '.join(PARTS)}, got {sorted(unknown)[0]}")
        return cls(config, source, {part: _load_part(part, config, source, dtype) for part in parts}).eval()

    def save(self, folder: str | Path) -> None:
        """Write a folder as the published one: the same files, the loaded parts' tensors in the type they now have.

        What is not loaded, vision for one, and all other files are copied from the folder that this was loaded from,
        which has to be there still. InputError when it is gone.
        """
        if not self.source.folder.is_dir():
            raise InputError(f"{self.source.folder}: gone; what was not loaded from it cannot be saved")
        self.source.save(folder, self.state_dict())

    def gradient_checkpointing_enable(self, how: dict | None = None) -> None:
        """Recompute activations in the backward pass, in train mode: the transformers of the LLM and of the decoder."""
        for network in (self.llm, self.tts and self.tts.model, self.apm):
            if network is not None:
                network.gradient_checkpointing_enable(how)


def open_folder(folder: str | Path) -> tuple[MiniCPMOConfig, Shards]:
    """A folder's config and where its weights lie. InputError for another model's, and for names of no known part."""
    config, source = MiniCPMOConfig.read(folder), Shards.open(folder)
    known = tuple(f"{part}." for part in PARTS) + _CARRIED
    if strange := [name for name in source.names() if not name.startswith(known)]:
        raise InputError(f"{folder}: the weights hold {strange[0]}, for which a MiniCPM-o 2.6 has no place")
    if (text := "tts.emb_text.weight") in source.files:  # the original fixes its size, whatever the config says
        config = replace(config, tts=replace(config.tts, num_text_tokens=source.shape(text)[0]))
    return config, source


def _load_part(part: str, config: MiniCPMOConfig, source: Shards, dtype: torch.dtype | str) -> nn.Module:
    make = {
        "llm": lambda: Qwen2ForCausalLM(config.llm),
        "apm": lambda: AudioEncoder(config.audio, config.attention_chunk),
        "audio_projection_layer": lambda: AudioProjector(
            config.audio.encoder_ffn_dim // 4, config.llm.hidden_size, config.audio_pool_step
        ),
        "tts": lambda: ConditionalChatTTS(config.tts),
    }[part]
    prefix = f"{part}."
    state = source.read(prefix, dtype, skip=_CARRIED)
    if not state:
        raise InputError(f"{source.folder}: the weights have no part {part}")
    return build(make, state, f"{source.folder}: {part}")
