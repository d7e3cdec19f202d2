"""An audio language model on disk (Qwen2-Audio and its like): how probable it finds each of some replies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.rewards.audio_model import long_enough
from elocute.rewards.local_model import open_folder, open_model


class AudioLLM:
    """path: a local AutoModelForMultimodalLM folder whose processor has a chat template. Loaded once, in `dtype`.

    What one recording gets does not depend on what else is in the batch.
    """

    def __init__(self, path: str | Path, batch_size: int = 4, device: str | None = None, dtype: str = "bfloat16"):
        from transformers import AutoModelForMultimodalLM, AutoProcessor

        self.processor = open_folder(path, AutoProcessor)
        self.batch_size = batch_size
        if not hasattr(self.processor, "feature_extractor") or not self.processor.chat_template:
            raise InputError(f"{path}: expected a model that hears, with a chat template")
        self.rate = self.processor.feature_extractor.sampling_rate
        self.model = open_model(path, AutoModelForMultimodalLM, device, dtype)
        self.processor.tokenizer.padding_side = "left"  # every prompt ends where its reply begins

    def log_probs(self, sounds: Sequence[tuple[np.ndarray, int]], question: str, replies: Sequence[str]) -> np.ndarray:
        """log p(reply | recording, question), summed over the reply's tokens: float64 [N recordings, K replies].

        sounds: (float [samples], Hz) each. A recording and the question are read once for all replies.
        """
        waveforms = [long_enough(resample(waveform, rate, self.rate), self.rate) for waveform, rate in sounds]
        prompt = self.prompt(question)
        tokens = [self.processor.tokenizer(reply, add_special_tokens=False).input_ids for reply in replies]
        rows = [
            self._batch(waveforms[start : start + self.batch_size], prompt, tokens)
            for start in range(0, len(waveforms), self.batch_size)
        ]
        return np.concatenate(rows)

    def prompt(self, question: str) -> str:
        """The whole prompt as the model's chat template has it, up to where its reply begins."""
        content = [{"type": "audio", "audio": "recording"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _batch(self, waveforms: list[np.ndarray], prompt: str, replies: list[list[int]]) -> np.ndarray:
        import torch

        count, device = len(waveforms), self.model.device
        inputs = self.processor(
            text=[prompt] * count, audio=waveforms, sampling_rate=self.rate, return_tensors="pt", padding=True
        ).to(device)
        if "input_features" in inputs:
            inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        longest = max(map(len, replies))
        reply_KL = torch.tensor([reply + [0] * (longest - len(reply)) for reply in replies], device=device)
        real_KL = torch.tensor([[1] * len(reply) + [0] * (longest - len(reply)) for reply in replies], device=device)
        mask_NT = inputs["attention_mask"]
        positions = (mask_NT.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            read = self.model(**inputs, position_ids=positions, use_cache=True)
            first_NV = read.logits[:, -1].float().log_softmax(-1)
            scores_NK = first_NV[:, reply_KL[:, 0]]
            if longest > 1:  # the cache holds what was read; every reply goes on from a copy of it
                cache = read.past_key_values
                cache.batch_repeat_interleave(len(replies))
                next_R = positions[:, -1:].repeat_interleave(len(replies), 0) + 1
                logits = self.model(
                    input_ids=reply_KL.repeat(count, 1)[:, :-1],
                    attention_mask=torch.cat(
                        [mask_NT.repeat_interleave(len(replies), 0), real_KL.repeat(count, 1)[:, :-1]], 1
                    ),
                    position_ids=next_R + torch.arange(longest - 1, device=device),
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                later = logits.float().log_softmax(-1).gather(-1, reply_KL.repeat(count, 1)[:, 1:, None]).squeeze(-1)
                later = torch.where(real_KL.repeat(count, 1)[:, 1:].bool(), later, 0.0).sum(-1)
                scores_NK = scores_NK + later.view(count, len(replies))
        return scores_NK.double().cpu().numpy()
