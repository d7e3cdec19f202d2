"""eSpeak NG, an utterance a process: `python starter/espeak.py VARIANT WORDS_PER_MINUTE TEXT` writes int16 to stdout.

A process of its own, because the library keeps oscillator state from one utterance to the next: only a fresh one says
the same text in the same samples whatever was said before. Nothing but the loader is imported, so it starts in 30 ms.
The samples' rate is SAMPLE_RATE.
"""

import ctypes
import subprocess
import sys

SAMPLE_RATE = 22050
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE_PARAMETER, _CHARS_UTF8, _POSITION_CHARACTER = 1, 1, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def espeak(text: str, variant: str, words_per_minute: int) -> bytes:
    """Speaks in a fresh process. Returns int16 samples at SAMPLE_RATE."""
    command = [sys.executable, "-I", __file__, variant, str(words_per_minute), text]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0 or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no sound"]
        raise RuntimeError(f"eSpeak NG, voice {variant!r}, text {text!r}: {reason[0]}")
    return done.stdout


def _speak_here(variant: str, words_per_minute: int, text: str) -> bytes:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    sample_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate != SAMPLE_RATE:
        raise RuntimeError(f"espeak_Initialize returned {sample_rate}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # or the breath noise would depend on the clock
    pieces: list[bytes] = []

    @_Callback
    def receive(samples, count, _events):
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(variant.encode()) != 0:
        raise RuntimeError("no such voice")
    library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)
    utf8 = text.encode()
    library.espeak_Synth(
        utf8, ctypes.c_size_t(len(utf8) + 1), ctypes.c_uint(0), _POSITION_CHARACTER, ctypes.c_uint(0),
        ctypes.c_uint(_CHARS_UTF8), None, None,
    )  # fmt: skip
    library.espeak_Synchronize()
    return b"".join(pieces)


if __name__ == "__main__":
    sys.stdout.buffer.write(_speak_here(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
