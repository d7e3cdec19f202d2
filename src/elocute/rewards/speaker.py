"""Is it still the same voice? Cosine of speaker embeddings (x-vectors). A guard: as a goal it can destabilise."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elocute.data.audio import load_audio
from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.rewards.audio_model import AudioModel
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper


class SpeakerReward:
    """Cosine in [−1, 1] between the voices of the answer and of a reference recording.

    path: a local AutoModelForAudioXVector folder such as wavlm-base-plus-sv. reference: a recording of the voice, or
    None: each row's `sft_target_audio`.
    """

    low, high = -1.0, 1.0
    measures = ("similarity",)
    guards = True

    def __init__(
        self,
        name: str,
        path: str | Path,
        reference: str | Path | None = None,
        device: str | None = None,
    ):
        from transformers import AutoModelForAudioXVector

        self.name, self.reference = name, None if reference is None else Path(reference)
        self.audio = AudioModel(path, AutoModelForAudioXVector, device)
        self._voices: dict[Path, np.ndarray] = {}

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a recording to compare with."""
        check_rows(examples, self._recording)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=True)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        voices = self._embed([(a.utterance.waveform, a.utterance.sample_rate) for a in answers])
        wanted = [self._recording(a.example) for a in answers]
        if missing := [path for path in dict.fromkeys(wanted) if path not in self._voices]:
            found = self._embed([load_audio(path, max_seconds=np.inf) for path in missing])
            self._voices |= zip(missing, found, strict=True)
        return [_cosine(voice, self._voices[path]) for voice, path in zip(voices, wanted, strict=True)]

    def _embed(self, sounds: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Unit vectors [N, D]; not finite where the model's are not."""
        vectors = self.audio(sounds, "embeddings")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _recording(self, example: Example) -> Path:
        if self.reference is not None:
            return self.reference
        audio = example.target_audio
        if audio is None or audio.key is not None or audio.path == Path(example.file):
            raise InputError(f"{example.where}: sft_target_audio: expected a recording of the voice, or `reference`")
        return audio.path


def _cosine(one: np.ndarray, other: np.ndarray) -> Outcome:
    value = float(one @ other)
    if not np.isfinite(value):
        return Unavailable("the embedding is not finite")
    value = min(max(value, -1.0), 1.0)
    return Scored(value, {"similarity": value})
