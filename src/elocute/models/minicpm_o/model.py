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

from elocute.data.shards import Shards, check_fit, without_weights
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
    the audio encoder (models/minicpm_lm.py leaves it out) and the TTS decoder alike, unless the names say more
    (`tts.model.layers…`).
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
        made = make_parts(config, source, parts)
        for part, network in made.items():
            network.load_state_dict(source.read(f"{part}.", dtype, skip=_CARRIED), assign=True)
        return cls(config, source, made).eval()

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

    def enable_input_require_grads(self) -> None:
        """Let gradients begin at the LLM's embeddings, though they are frozen; the decoder's begin at its voice."""
        self.llm.enable_input_require_grads()


def open_folder(folder: str | Path) -> tuple[MiniCPMOConfig, Shards]:
    """A folder's config and where its weights lie. InputError for another model's, and for names of no known part."""
    config, source = MiniCPMOConfig.read(folder), Shards.open(folder)
    known = tuple(f"{part}." for part in PARTS) + _CARRIED
    if strange := [name for name in source.names() if not name.startswith(known)]:
        raise InputError(f"{folder}: the weights hold {strange[0]}, for which a MiniCPM-o 2.6 has no place")
    if text := source.shapes("tts.emb_text.weight"):  # the original fixes its size, whatever the config says
        config = replace(config, tts=replace(config.tts, num_text_tokens=text[""][0]))
    return config, source


def make_parts(config: MiniCPMOConfig, source: Shards, parts: Iterable[str] = PARTS) -> dict[str, nn.Module]:
    """The parts without their weights. InputError unless the weights that lie there are exactly theirs."""
    made = {}
    for part in parts:
        made[part] = without_weights(lambda part=part: _make(part, config))
        if not (shapes := source.shapes(f"{part}.", skip=_CARRIED)):
            raise InputError(f"{source.folder}: the weights have no part {part}")
        check_fit(made[part], shapes, f"{source.folder}: {part}")
    return made


def _make(part: str, config: MiniCPMOConfig) -> nn.Module:
    if part == "llm":
        return Qwen2ForCausalLM(config.llm)
    if part == "apm":
        return AudioEncoder(config.audio, config.attention_chunk)
    if part == "audio_projection_layer":  # the original takes the encoder's width to be a quarter of its MLP's
        return AudioProjector(config.audio.encoder_ffn_dim // 4, config.llm.hidden_size, config.audio_pool_step)
    if part == "tts":
        return ConditionalChatTTS(config.tts)
    raise ValueError(f"parts: expected {', '.join(PARTS)}, got {part}")
