"""eSpeak NG, an utterance a process: `espeak(text, variant, words_per_minute)` gives int16 samples at SAMPLE_RATE.

A process of its own, because the library keeps oscillator state from one utterance to the next: only a fresh one says
the same text in the same samples whatever was said before. A small server (this file, run as a script) forks for each.
"""

import ctypes
import json
import os
import subprocess
import sys
from functools import cache

SAMPLE_RATE = 22050
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE_PARAMETER, _CHARS_UTF8, _POSITION_CHARACTER = 1, 1, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def espeak(text: str, variant: str, words_per_minute: int) -> bytes:
    """int16 samples at SAMPLE_RATE. Raises RuntimeError when eSpeak NG says nothing."""
    server = _server()
    server.stdin.write(json.dumps([variant, words_per_minute, text]).encode() + b"\n")
    server.stdin.flush()
    samples = server.stdout.read(int.from_bytes(server.stdout.read(4), "little"))
    if not samples:
        raise RuntimeError(f"eSpeak NG, voice {variant!r}, text {text!r}: no sound")
    return samples


@cache
def _server() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve() -> None:
    """Lines of JSON in; for each, the number of bytes (4, little endian) and the samples out, made in a fork."""
    import espeakng_loader  # noqa: F401  (imported once, before the forks)

    for line in sys.stdin:
        reader, writer = os.pipe()
        if child := os.fork():
            os.close(writer)
            with open(reader, "rb") as pipe:
                samples = pipe.read()
            os.waitpid(child, 0)
            sys.stdout.buffer.write(len(samples).to_bytes(4, "little") + samples)
            sys.stdout.buffer.flush()
        else:
            with open(writer, "wb") as pipe:
                pipe.write(_speak_here(*json.loads(line)))
            os._exit(0)


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
    _serve()
