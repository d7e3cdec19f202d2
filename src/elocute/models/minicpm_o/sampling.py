"""How MiniCPM-o 2.6's speech decoder draws its codes, as pure functions of logits, and the loop that does it.

Frame t's four codes are drawn independently. Each codebook has its temperature; then, but for the very first frame,
only the likeliest codes are kept, top-p before top-k. The end code is banned in the first 10 of every 25 frames: the
original draws 25 in a call, and forbids the end at the start of every call, wherever the utterance stands. These rules
are the behaviour policy; what they do to the distribution must be in the log-probs of both sampling and training.
"""

import math
from dataclasses import dataclass

import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from elocute.errors import InputError
from elocute.models.minicpm_o.config import ChatTTSConfig
from elocute.models.minicpm_o.tts import ConditionalChatTTS, SpeechCache


@dataclass(frozen=True)
class SpeechSampling:
    """The rules. Defaults: the original's.

    temperatures: one for each codebook. top_p, top_k: None is off; both keep at least `keep` codes. The end is banned
    in the first `no_end` of every `call` frames; 0 never bans it. max_frames: an utterance that long is cut.
    """

    temperatures: tuple[float, ...] = (0.1, 0.3, 0.1, 0.3)
    top_p: float | None = 0.7
    top_k: int | None = 20
    keep: int = 3
    call: int = 25
    no_end: int = 10
    max_frames: int = 2048

    @classmethod
    def plain(cls, temperature: float = 1.0, max_frames: int = 2048) -> "SpeechSampling":
        """The decoder's own distribution at one temperature, nothing banned: what is sampled is what is trained."""
        return cls((temperature,) * 4, top_p=None, top_k=None, no_end=0, max_frames=max_frames)

    @classmethod
    def published(cls, config: ChatTTSConfig) -> "SpeechSampling":
        """The original's, with what tts_config says. InputError for a repetition penalty, which is not built."""
        if config.repetition_penalty != 1.0:
            raise InputError(f"tts_config: repetition_penalty: expected 1.0, got {config.repetition_penalty}")
        return cls(top_p=config.top_p, top_k=config.top_k)


@dataclass(frozen=True)
class Speech:
    """What was drawn. codes int64 [B, T, num_vq]; frames int64 [B]: of each row, its end included; ended bool [B].

    logprobs float32 [B, T, num_vq]: of the codes under the rules. Behind a row's frames all is 0.
    """

    codes: torch.Tensor
    frames: torch.Tensor
    ended: torch.Tensor
    logprobs: torch.Tensor


def behaviour_logits(logits: torch.Tensor, frames: torch.Tensor, sampling: SpeechSampling) -> torch.Tensor:
    """Logits [B, T, num_vq, V] of these frames, int64 [T] from 0 → those drawn from, float32; −∞ is never drawn.

    What the rules exclude has a log-prob of −∞: select the actions before anything is multiplied by a mask, and train
    on codes drawn by other weights or rules under `SpeechSampling.plain`, as off-policy.
    """
    warped = logits.float() / torch.tensor(sampling.temperatures, device=logits.device)[:, None]
    first = (frames == 0)[:, None, None]
    warped = torch.where(first, warped, _most_likely(warped, sampling))
    banned = (frames % sampling.call < sampling.no_end)[:, None]
    ban = torch.zeros_like(warped, dtype=torch.bool)
    ban[..., -1] = banned
    return warped.masked_fill(ban, -math.inf)


def code_logprobs(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """log softmax(logits [..., V]) at codes int64 [...]: [...] in float32. A frame's log-prob is its codes' sum."""
    return logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]


@torch.no_grad()
def speak(
    tts: ConditionalChatTTS,
    text: torch.Tensor,
    text_length: torch.Tensor,
    speaker: torch.Tensor,
    sampling: SpeechSampling,
    generator: torch.Generator | None = None,
) -> Speech:
    """Draw utterances; text, text_length and speaker as ConditionalChatTTS.forward takes them."""
    slots = int(text_length.max())
    cache = SpeechCache(slots)
    tts.read_text(cache, text[:, :slots], torch.arange(slots, device=text.device) < text_length[:, None], speaker)
    ended = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    codes, logprobs, alive, previous = [], [], [], None
    while len(codes) < sampling.max_frames and not ended.all():
        frame = torch.tensor([len(codes)], device=text.device)
        states = tts.read_frame(cache, previous)
        logits = behaviour_logits(tts.logits(states)[:, None], frame, sampling)[:, 0]
        previous = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(logits.shape[:2])
        codes.append(previous)
        logprobs.append(code_logprobs(logits, previous))
        alive.append(~ended)
        ended = ended | (previous == tts.config.eos).any(-1)
    shown = torch.stack(alive, 1)
    drawn, scores = torch.stack(codes, 1), torch.stack(logprobs, 1)
    return Speech(drawn * shown[..., None], shown.sum(1), ended, scores.masked_fill(~shown[..., None], 0.0))


def _most_likely(logits: torch.Tensor, sampling: SpeechSampling) -> torch.Tensor:
    """−∞ for all but the likeliest codes."""
    flat = logits.flatten(0, -2)
    if sampling.top_p is not None:
        flat = TopPLogitsWarper(sampling.top_p, min_tokens_to_keep=sampling.keep)(None, flat)
    if sampling.top_k is not None:
        flat = TopKLogitsWarper(sampling.top_k, min_tokens_to_keep=sampling.keep)(None, flat)
    return flat.view_as(logits)
