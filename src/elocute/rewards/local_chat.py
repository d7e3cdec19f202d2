"""A chat model on disk that reads (Mistral and its like) or hears (Qwen2-Audio): what it replies, and how probable it
finds each of some replies."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.rewards.audio_model import long_enough
from elocute.rewards.judge import Sound
from elocute.rewards.local_model import open_folder, open_model
from elocute.rewards.outcome import Unavailable


@dataclass(frozen=True)
class Question:
    """What a model is asked: what it is to do, then words and recordings in order."""

    parts: tuple[str | Sound, ...]
    system: str = ""


class LocalChat:
    """path: a local folder with a chat template, of a model that reads, or of one whose processor hears, or a `.gguf`.

    hears: whether it does. Loaded once, in `dtype`; the folder's settings of sampling do not count. What a question
    gets does not depend on what else is in the batch. A recording longer than the model's window (Qwen2-Audio: 30 s) is
    given in pieces, each a recording of its own.
    """

    def __init__(self, path: str | Path, batch_size: int = 4, device: str | None = None, dtype: str = "bfloat16"):
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForMultimodalLM,
            AutoProcessor,
            AutoTokenizer,
            GenerationConfig,
        )

        self.path, self.batch_size = Path(path), batch_size
        # Of a folder without a feature extractor transformers gives the tokenizer.
        self.processor = open_folder(path, AutoTokenizer if self.path.suffix == ".gguf" else AutoProcessor)
        self.hears = hasattr(self.processor, "feature_extractor")
        if self.hears and not hasattr(self.processor, "tokenizer"):
            raise InputError(f"{path}: expected a chat model, found one that hears and does not reply")
        self.tokenizer = self.processor.tokenizer if self.hears else self.processor
        if not getattr(self.processor, "chat_template", None):
            raise InputError(f"{path}: expected a chat model, found one without a chat template")
        self.model = open_model(path, AutoModelForMultimodalLM if self.hears else AutoModelForCausalLM, device, dtype)
        self.context: float = getattr(self.model.config.get_text_config(), "max_position_embeddings", math.inf)
        self.tokenizer.padding_side = "left"  # every prompt ends where its reply begins
        if self.tokenizer.pad_token is None:  # Mistral's; what it is does not matter behind the mask
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Published folders ask for sampling and penalties (Qwen2-Audio: T 0.7, penalty 1.1); a judge is to be steady.
        end = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=self.tokenizer.pad_token_id)
        self._marks = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._takes_system = self._has_system_turn()

    def replies(self, questions: Sequence[Question], max_tokens: int) -> list[str | Unavailable]:
        """The likeliest reply token by token, of `max_tokens` tokens at most, to each question."""

        def reply(inputs: Any) -> list[str | Unavailable]:
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
            texts = self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            return [text.strip() or Unavailable("empty reply") for text in texts]

        return self._by_batch(questions, max_tokens, reply)

    def log_probs(self, questions: Sequence[Question], replies: Sequence[str]) -> list[np.ndarray | Unavailable]:
        """log p(reply | question), summed over the reply's tokens: float64 [K replies] for each question.

        A question is read once for all replies.
        """
        tokens = [self.tokenizer(reply, add_special_tokens=False).input_ids for reply in replies]
        return self._by_batch(questions, max(map(len, tokens)), lambda inputs: list(self._log_probs(inputs, tokens)))

    def prompt(self, question: Question) -> str:
        """The whole prompt as the model's chat template has it, up to where its reply begins."""
        parts = [part if isinstance(part, str) else self._windows(part) for part in question.parts]
        parts = [self._plain(part) if isinstance(part, str) else part for part in parts]
        if question.system and not self._takes_system:
            return self._render("", [question.system, *parts])
        return self._render(question.system, parts)

    def _render(self, system: str, parts: Sequence[str | list[np.ndarray]]) -> str:
        if self.hears:
            content: Any = []
            for n, part in enumerate(parts):
                if isinstance(part, str):  # templates put nothing between a text and what comes next
                    content.append({"type": "text", "text": part + ("\n" if n + 1 < len(parts) else "")})
                else:
                    content += [{"type": "audio", "audio": "recording"} for _ in part]
            above: Any = [{"type": "text", "text": system}]
        else:
            content, above = "\n\n".join(parts), system
        messages = [{"role": "system", "content": above}] if system else []
        return self.processor.apply_chat_template(
            [*messages, {"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _has_system_turn(self) -> bool:
        """Mistral's first templates refuse one, others leave it out: what it says then goes before the user's turn."""
        from jinja2 import TemplateError

        try:
            return "be a judge" in self._render("be a judge", ["hello"])
        except TemplateError:
            return False

    def _plain(self, text: str) -> str:
        """What is judged must not end its turn or pass for a recording: the template's marks in it are taken apart."""
        for mark in self._marks:
            if len(mark.strip()) > 1:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _windows(self, sound: Sound) -> list[np.ndarray]:
        rate = self.processor.feature_extractor.sampling_rate
        waveform = long_enough(resample(*sound, rate), rate)
        longest = getattr(self.processor.feature_extractor, "n_samples", len(waveform))
        return [long_enough(waveform[i : i + longest], rate) for i in range(0, len(waveform), longest)]

    def _by_batch(self, questions: Sequence[Question], room: int, work: Callable[[Any], list]) -> list:
        """`work` on the questions that leave `room` tokens in the model's context, a batch at a time; order is kept."""
        import torch

        found: dict[int, Any] = {}
        for own in self._batches(len(questions)):
            try:
                inputs = self._inputs([questions[i] for i in own])
                lengths = dict(zip(own, inputs["attention_mask"].sum(-1).tolist(), strict=True))
                fitting = [i for i in own if lengths[i] + room <= self.context]
                for i in set(own) - set(fitting):
                    found[i] = Unavailable(
                        f"the question's {lengths[i]} tokens and the reply's {room} exceed the model's context of "
                        f"{self.context}"
                    )
                if fitting and len(fitting) < len(own):
                    inputs = self._inputs([questions[i] for i in fitting])
                with torch.inference_mode():
                    found |= zip(fitting, work(inputs) if fitting else [], strict=True)
            except RuntimeError as error:  # torch's word for: out of memory, a lost device …
                found |= dict.fromkeys(own, Unavailable(f"the model failed: {str(error).splitlines()[0]}"))
        return [found[i] for i in range(len(questions))]

    def _batches(self, count: int) -> Iterator[list[int]]:
        for start in range(0, count, self.batch_size):
            yield list(range(start, min(start + self.batch_size, count)))

    def _inputs(self, questions: Sequence[Question]) -> Any:
        how = {"return_tensors": "pt", "padding": True, "add_special_tokens": False}  # the template has written them
        prompts = [self.prompt(question) for question in questions]
        sounds = [part for question in questions for part in question.parts if not isinstance(part, str)]
        if not sounds:
            return self.tokenizer(prompts, **how).to(self.model.device)
        waveforms = [window for sound in sounds for window in self._windows(sound)]
        rate = self.processor.feature_extractor.sampling_rate
        inputs = self.processor(text=prompts, audio=waveforms, sampling_rate=rate, **how).to(self.model.device)
        if "input_features" in inputs:
            inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        return inputs

    def _log_probs(self, inputs: Any, replies: list[list[int]]) -> np.ndarray:
        """[N questions, K replies]: the cache holds what was read, every reply goes on from a copy of it."""
        import torch

        count, device = len(inputs["input_ids"]), self.model.device
        longest = max(map(len, replies))
        reply_KL = torch.tensor([reply + [0] * (longest - len(reply)) for reply in replies], device=device)
        real_KL = torch.tensor([[1] * len(reply) + [0] * (longest - len(reply)) for reply in replies], device=device)
        mask_NT = inputs["attention_mask"]
        positions = (mask_NT.cumsum(-1) - 1).clamp(min=0)
        read = self.model(**inputs, position_ids=positions, use_cache=True)
        scores_NK = read.logits[:, -1].float().log_softmax(-1)[:, reply_KL[:, 0]]
        if longest > 1:
            cache = read.past_key_values
            cache.batch_repeat_interleave(len(replies))
            next_R = positions[:, -1:].repeat_interleave(len(replies), 0) + 1
            reply_RL, real_RL = reply_KL.repeat(count, 1), real_KL.repeat(count, 1)
            logits = self.model(
                input_ids=reply_RL[:, :-1],
                attention_mask=torch.cat([mask_NT.repeat_interleave(len(replies), 0), real_RL[:, :-1]], 1),
                position_ids=next_R + torch.arange(longest - 1, device=device),
                past_key_values=cache,
                use_cache=True,
            ).logits
            later = logits.float().log_softmax(-1).gather(-1, reply_RL[:, 1:, None]).squeeze(-1)
            later = torch.where(real_RL[:, 1:].bool(), later, 0.0).sum(-1)
            scores_NK = scores_NK + later.view(count, len(replies))
        return scores_NK.double().cpu().numpy()
