"""The ear of Qwen2.5-Omni's thinker: log-mel frames of Whisper's feature extractor, and the audio tower over them.

Frozen: what is heard is worked out once a prompt. A recording is heard in blocks of 2 · n_window frames (two seconds),
each of which attends to itself only.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from elocute.data.audio import resample
from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.qwen_omni.config import open_folder, read_part, shapes_of

PREFIX = "thinker.audio_tower."
_SHORTEST = 3
"""Frames: fewer make no state."""


class Ear:
    """Waveform → states of the thinker's width, 25 a second. On the first GPU if there is one."""

    def __init__(self, tower: Qwen2_5OmniAudioEncoder, mel: WhisperFeatureExtractor):
        self.tower = tower.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        self.mel = mel

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "Ear":
        """From a Qwen2.5-Omni folder, of which only the audio tower and preprocessor_config.json are read."""
        tower, mel, source = make_ear(folder)
        tower.load_state_dict(read_part(source, PREFIX, dtype), assign=True)
        return cls(tower, mel)

    def log_mel(self, waveform: np.ndarray, sample_rate: int) -> torch.Tensor:
        """Float mono [samples] at any rate → float32 [bins, ⌈samples / hop⌉], as transformers' processor has it.

        The processor puts silence behind a recording up to 300 s and cuts the frames off again; silence of one window
        gives the same frames. InputError for a recording that is longer than that, or too short to be heard.
        """
        rate, hop = self.mel.sampling_rate, self.mel.hop_length
        waveform = resample(np.asarray(waveform, dtype=np.float32), sample_rate, rate)
        frames = -(-len(waveform) // hop)
        if len(waveform) > self.mel.n_samples:
            raise InputError(f"lasts {len(waveform) / rate:.1f} s, the model hears {self.mel.n_samples / rate:g} s")
        if frames < _SHORTEST:
            raise InputError(f"lasts {len(waveform) / rate * 1000:.0f} ms, too short to be heard")
        silence = np.zeros(self.mel.n_fft + -len(waveform) % hop, dtype=np.float32)
        sound = np.concatenate([waveform, silence])[None]
        extracted = self.mel(
            list(sound), sampling_rate=rate, padding="do_not_pad", truncation=False, return_tensors="pt"
        )
        return extracted.input_features[0, :, :frames]

    @torch.no_grad()
    def hear(self, waveform: np.ndarray, sample_rate: int) -> torch.Tensor:
        """Float mono [samples] at any rate → the thinker's inputs [n, D] on the CPU, n = ((F − 1) // 2 − 1) // 2 + 1
        of F frames."""
        mel = self.log_mel(waveform, sample_rate).to(self.tower.conv1.weight.device)
        length = torch.tensor([mel.shape[1]], device=mel.device)
        after, _ = self.tower._get_feat_extract_output_lengths(length)
        heard = self.tower(mel, feature_lens=length, aftercnn_lens=after).last_hidden_state
        return heard.cpu()


def make_ear(folder: str | Path) -> tuple[Qwen2_5OmniAudioEncoder, WhisperFeatureExtractor, Shards]:
    """The audio tower without its weights, what it hears, and where they lie. InputError for what does not fit."""
    config, source = open_folder(folder)
    mel, shape = read_extractor(folder), config.thinker_config.audio_config
    if mel.feature_size != shape.num_mel_bins:
        raise InputError(
            f"{folder}/preprocessor_config.json: feature_size: expected {shape.num_mel_bins} as the audio tower has, "
            f"got {mel.feature_size}"
        )
    tower = without_weights(lambda: Qwen2_5OmniAudioEncoder(shape))
    check_fit(tower, shapes_of(source, PREFIX), f"{folder}: {PREFIX[:-1]}")
    return tower, mel, source


def read_extractor(folder: str | Path) -> WhisperFeatureExtractor:
    """preprocessor_config.json. InputError when it is not there or not of Whisper's extractor."""
    try:
        return WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: no preprocessor_config.json of a Qwen2.5-Omni: {reason}") from error
