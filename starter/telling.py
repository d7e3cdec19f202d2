"""Stories aloud, by joe: sentence by sentence, each recorded once and kept in a folder.

A pause follows every sentence, so long that the next begins on the codec's grid of blocks: a sentence sounds the same,
and is encoded the same, in whichever story it stands.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from elocute.data.audio import load_audio, save_wav
from elocute.speech.features import BLOCK
from starter.make_data import run_all
from starter.takes import SAMPLE_RATE, close_cut
from starter.voices import speak, voice_named

RECORDINGS = Path(__file__).with_name("build") / "sentences"
PAUSE_SECONDS = 0.16
STORYTELLER = "joe"


def record(texts: Iterable[str], processes: int, voice: str = STORYTELLER, folder: Path = RECORDINGS) -> None:
    """Speak what is not recorded yet. A run that was stopped goes on where it stopped."""
    wanted = list(dict.fromkeys(texts))
    missing = [(text,) for text in wanted if not recording(text, voice, folder).exists()]
    print(f"{voice}: {len(wanted) - len(missing)} of {len(wanted)} sentences are recorded already", flush=True)
    run_all(partial(_record, voice, folder), missing, processes, "sentences recorded")


def recording(text: str, voice: str = STORYTELLER, folder: Path = RECORDINGS) -> Path:
    """Where a sentence's recording lies."""
    return folder / voice / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.wav"


def told(sentences: Sequence[str], voice: str = STORYTELLER, folder: Path = RECORDINGS) -> np.ndarray:
    """The recorded sentences with their pauses: float32 at 16 kHz, a whole number of the codec's blocks."""
    return np.concatenate([load_audio(recording(text, voice, folder))[0] for text in sentences])


def _record(voice: str, folder: Path, job: tuple[str]) -> None:
    [text] = job
    spoken = close_cut(*speak(text, voice_named(voice)))
    pause = round(PAUSE_SECONDS * SAMPLE_RATE)
    pause += -(len(spoken) + pause) % BLOCK
    save_wav(recording(text, voice, folder), np.concatenate([spoken, np.zeros(pause, np.float32)]), SAMPLE_RATE)
