"""HiFT, log-mel spectrum → waveform: a harmonic source and an inverse STFT around a HiFi-GAN (Li et al. 2023, HiFTNet).

    f0     = |Linear(ELU(conv(… mel)))|, held for the samples of a frame
    source = tanh(Linear(a · sin(2π Σ k f0 / rate + φ_k) · voiced + noise)),   k = 1 … 9, φ_1 = 0 (Wang et al. 2019)
    noise  ~ σ where voiced (f0 > 10 Hz), a / 3 where not
    stage  : x = mean of Snake blocks(upsample(leaky 0.1 (x)) + Snake block(conv(STFT(source))))
    sound  = ISTFT(min(exp(m), 100) · e^(i sin p)),   [m, p] = conv_post(leaky 0.01 (x)),  clamped
    Snake  : x + sin²(αx) / α                                                       (Ziyin et al. 2020)

Sizes come with the checkpoint's config.yaml. From the papers and from nothing that the weights could show come: the
noise where nothing is voiced (a / 3), the order [real, imaginary] of the source's STFT, the periodic Hann window, and
that phases are drawn, uniform in ±π, before the noise.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

_LOUDEST = 100.0
_LEAST_ALPHA = 1e-9


class Hift(nn.Module):
    """Log-mel → sound of one voice. The names are those of the published weights, without weight norm.

    config: the `hift` of config.yaml. sample_rate: Hz; hop: samples a frame.
    """

    def __init__(self, config: dict):
        super().__init__()
        rates, width = config["upsample_rates"], config["base_channels"]
        self.fft, self.fft_hop = config["istft_params"]["n_fft"], config["istft_params"]["hop_len"]
        self.sample_rate, self.hop = int(config["sampling_rate"]), math.prod(rates) * self.fft_hop
        self.slope, self.limit = float(config["lrelu_slope"]), float(config["audio_limit"])
        self.f0_predictor = PitchPredictor(config["f0_predictor"])
        self.m_source = Source(config, self.sample_rate)
        self.conv_pre = nn.Conv1d(config["in_channels"], width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        kernels, dilations = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
        of_source = zip(config["source_resblock_kernel_sizes"], config["source_resblock_dilation_sizes"], strict=True)
        stages = zip(rates, config["upsample_kernel_sizes"], of_source, strict=True)
        for stage, (rate, kernel, shape) in enumerate(stages):
            wide, narrow = width >> stage, width >> stage + 1
            self.ups.append(nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2))
            self.source_downs.append(slowed(self.fft + 2, narrow, math.prod(rates[stage + 1 :])))
            self.source_resblocks.append(SnakeBlock(narrow, *shape))
            self.resblocks.extend(SnakeBlock(narrow, *each) for each in zip(kernels, dilations, strict=True))
        self.conv_post = nn.Conv1d(narrow, self.fft + 2, 7, padding=3)

    def forward(self, mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Log-mel [1, mel, T] → float [1, hop · T] in ±audio_limit. The generator is the CPU's."""
        f0 = self.f0_predictor(mel).repeat_interleave(self.hop, 1)
        return self.sound(mel, self.m_source(f0, generator))

    def sound(self, mel: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Log-mel [1, mel, T] and its source [1, hop · T] → [1, hop · T]."""
        window = torch.hann_window(self.fft, dtype=mel.dtype, device=mel.device)
        spectrum = torch.stft(source, self.fft, self.fft_hop, self.fft, window, return_complex=True)
        driven = torch.cat([spectrum.real, spectrum.imag], 1)
        x = self.conv_pre(mel)
        blocks = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # an STFT has one frame more than there are hops
            x = x + self.source_resblocks[stage](self.source_downs[stage](driven))
            x = sum(block(x) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]) / blocks
        magnitude, phase = self.conv_post(F.leaky_relu(x, 0.01)).tensor_split([self.fft // 2 + 1], 1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_LOUDEST), phase.sin())
        return torch.istft(spectrum, self.fft, self.fft_hop, self.fft, window).clamp(-self.limit, self.limit)


def slowed(entering: int, width: int, rate: int) -> nn.Conv1d:
    """A convolution that makes one frame of `rate`."""
    if rate == 1:
        return nn.Conv1d(entering, width, 1)
    return nn.Conv1d(entering, width, 2 * rate, rate, padding=rate // 2)


class PitchPredictor(nn.Module):
    """Log-mel [1, mel, T] → F0 in Hz, [1, T]."""

    def __init__(self, config: dict):
        super().__init__()
        width, parts = config["cond_channels"], []
        for entering in (config["in_channels"], width, width, width, width):
            parts += [nn.Conv1d(entering, width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*parts)
        self.classifier = nn.Linear(width, config["num_class"])

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2))[..., 0].abs()


class Source(nn.Module):
    """F0 in Hz at every sample, [1, S] → source [1, S]: harmonics where it is voiced, noise where not."""

    def __init__(self, config: dict, sample_rate: int):
        super().__init__()
        self.sample_rate, self.waves = sample_rate, config["nb_harmonics"] + 1
        loudness = (config["nsf_alpha"], config["nsf_sigma"], config["nsf_voiced_threshold"])
        self.loud, self.noise, self.least = map(float, loudness)
        self.l_linear = nn.Linear(self.waves, 1)

    def forward(self, f0: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        phases = torch.rand(1, self.waves, 1, generator=generator) * (2 * math.pi) - math.pi
        phases[:, 0] = 0
        noise = torch.randn(1, self.waves, f0.shape[1], generator=generator)
        waves = self.harmonics(f0, phases.to(f0), noise.to(f0))
        return torch.tanh(self.l_linear(waves.transpose(1, 2)))[..., 0]

    def harmonics(self, f0: torch.Tensor, phases: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """F0 [1, S], first phases [1, waves, 1], noise of unit power [1, waves, S] → [1, waves, S]."""
        order = torch.arange(1, self.waves + 1, device=f0.device)[:, None]
        turns = torch.cumsum(f0[:, None] * order / self.sample_rate, -1) % 1
        voiced = (f0[:, None] > self.least).to(f0)
        noisiness = voiced * self.noise + (1 - voiced) * self.loud / 3
        return self.loud * torch.sin(2 * math.pi * turns + phases) * voiced + noisiness * noise


class SnakeBlock(nn.Module):
    """x + conv(snake(dilated conv(snake(x)))), once for each dilation."""

    def __init__(self, width: int, kernel: int, dilations: list[int]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(width) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(width) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for first, dilated, second, plain in steps:
            x = x + plain(second(dilated(first(x))))
        return x


class Snake(nn.Module):
    """x + sin²(αx) / α, one α a channel; [1, C, T]."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x) ** 2 / (alpha + _LEAST_ALPHA)
