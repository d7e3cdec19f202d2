"""Sound files in and out: any format libsndfile reads comes in, mono float32; PCM16 WAV goes out."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from elocute.data.files import write_atomically
from elocute.errors import InputError, RunError

SILENCE = 1e-4  # peak below which a recording holds nothing to hear: -80 dB of full scale


def load_audio(
    path: str | Path, *, max_seconds: float = 60, seconds: float | None = None, silent: bool = False
) -> tuple[np.ndarray, int]:
    """Read a sound file (WAV, FLAC, MP3, OGG …; any rate; channels are averaged), or its first `seconds` only.

    Returns the waveform, float32 [samples], and its sample rate in Hz. Raises InputError, naming the file, when it is
    missing, unreadable, cut off, not finite, longer than `max_seconds` or, unless it may be `silent`, empty or silent.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: audio file not found")
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, declared = file.samplerate, file.frames
            if seconds is not None:
                declared = min(declared, round(seconds * rate))
            if declared > max_seconds * rate:
                raise InputError(f"{path}: audio lasts {declared / rate:.1f} s, at most {max_seconds:g} s are allowed")
            channels = file.read(declared, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: soundfile's word for headerless .raw
        raise InputError(f"{path}: not a readable audio file ({' '.join(str(error).split())})") from None
    waveform = np.ascontiguousarray(channels.mean(axis=1))
    if len(waveform) < declared:
        raise InputError(f"{path}: audio is cut off: {declared} samples announced, {len(waveform)} there")
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: audio holds NaN or infinite samples")
    if silent:
        return waveform, rate
    if not len(waveform):
        raise InputError(f"{path}: audio is empty")
    if (peak := np.abs(waveform).max()) < SILENCE:
        raise InputError(f"{path}: audio is silent (peak {peak:.1g}, expected at least {SILENCE:g} of full scale)")
    return waveform, rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Waveform [samples] at `from_rate` Hz → float32 [samples · to_rate / from_rate] at `to_rate` Hz."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if from_rate == to_rate or not len(waveform):
        return waveform
    return soxr.resample(waveform, from_rate, to_rate)


def wav_bytes(waveform: np.ndarray, sample_rate: int) -> bytes:
    """A PCM16 WAV file in memory. `waveform` is float [samples]; what exceeds [-1, 1] is clipped."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"expected a float waveform of shape [samples], got {waveform.dtype} {list(waveform.shape)}")
    if not np.isfinite(waveform).all():
        raise RunError("a waveform to be written holds NaN or infinite samples")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def save_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write `waveform`, float [samples], as a PCM16 WAV, whole or not at all."""
    write_atomically(path, wav_bytes(waveform, sample_rate))
