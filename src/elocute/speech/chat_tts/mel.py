"""Log-mel spectrograms at 24 kHz as Vocos and ChatTTS have them: magnitudes, HTK scale, natural logarithm."""

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 24000
_FLOOR = 1e-5


class LogMel(nn.Module):
    """Hann windows of n_fft samples every n_fft/4, centred. Buffers are named as torchaudio's, for Vocos has them."""

    def __init__(self, bins: int = 100, n_fft: int = 1024):
        super().__init__()
        self.n_fft = n_fft
        banks = mel_filter_bank(1 + n_fft // 2, bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
        self.spectrogram, self.mel_scale = nn.Module(), nn.Module()
        self.spectrogram.register_buffer("window", torch.hann_window(n_fft))
        self.mel_scale.register_buffer("fb", torch.from_numpy(banks).float())

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 [samples], more than n_fft/2 of them → [bins, 1 + samples // hop]."""
        spectrum = torch.stft(
            waveform, self.n_fft, self.n_fft // 4, window=self.spectrogram.window, center=True, return_complex=True
        )
        return torch.log((self.mel_scale.fb.T @ spectrum.abs()).clamp(min=_FLOOR))
