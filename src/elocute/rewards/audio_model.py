"""A local transformers model that listens: waveforms at any rate in, one vector each out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.audio import resample
from elocute.rewards.local_model import open_folder, open_model

SHORTEST = 1.0  # seconds; what is shorter is repeated, for convolutions and pooling need some frames


class AudioModel:
    """auto_class: which head the folder `path` is opened with.

    It hears one waveform at a time: many of these models hear the padding of a batch (norms over time, pooling), and
    what an answer is worth must not depend on its neighbours.
    """

    def __init__(self, path: str | Path, auto_class: Any, device: str | None):
        from transformers import AutoFeatureExtractor

        self.extractor = open_folder(path, AutoFeatureExtractor)
        self.model = open_model(path, auto_class, device)
        self.rate = self.extractor.sampling_rate

    def __call__(self, sounds: Sequence[tuple[np.ndarray, int]], output: str) -> np.ndarray:
        """(float [samples], Hz) each → the model's `output` ("logits", "embeddings"), float64 [N, D]."""
        return np.stack([self._hear(resample(waveform, rate, self.rate), output) for waveform, rate in sounds])

    def _hear(self, waveform: np.ndarray, output: str) -> np.ndarray:
        import torch

        inputs = self.extractor(long_enough(waveform, self.rate), sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            return getattr(self.model(**inputs.to(self.model.device)), output)[0].double().cpu().numpy()


def long_enough(waveform: np.ndarray, rate: int) -> np.ndarray:
    """At least a second, by repetition: float [samples] → the same or longer."""
    shortest = int(SHORTEST * rate)
    return waveform if len(waveform) >= shortest else np.resize(waveform, shortest)
