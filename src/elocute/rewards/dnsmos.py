"""DNSMOS P.835 (Reddy et al. 2022, arXiv 2110.01763): how good the sound is.

It agrees with listeners on which of two clips is better in little more than half of all cases: a guard, no goal.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from elocute.data.audio import resample
from elocute.data.types import Answer
from elocute.errors import InputError
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.packaged import dnsmos
from elocute.rewards.proper import score_proper

RATE, SECONDS, SAMPLES = 16_000, 9.01, 144_160  # of the model's input
# From the network's outputs to the scale of listeners: polynomials published with the model, highest power first.
_TO_SCALE = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class DnsmosReward:
    """The overall quality in [1, 5]; `detail` holds it with those of signal and background.

    path: `sig_bak_ovr.onnx` of Microsoft's DNS challenge, float32 waveforms [N, 144160] at 16 kHz in, signal,
    background and overall [N, 3] out; None: the one in the package `speechmos`. Shorter audio is repeated, longer is
    judged every second and averaged (`dnsmos_windows`). Needs onnxruntime (extra `dnsmos`).
    """

    low, high = 1.0, 5.0
    measures = tuple(_TO_SCALE)
    guards = True

    def __init__(self, name: str, path: str | Path | None = None):
        if find_spec("onnxruntime") is None:
            raise InputError("dnsmos needs onnxruntime: pip install -e '.[dnsmos]'")
        onnxruntime = import_module("onnxruntime")
        self.name, path = name, dnsmos() if path is None else Path(path)
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise InputError(f"{path}: cannot be opened as an ONNX model: {str(error).splitlines()[0]}") from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if [i.shape[1:] for i in inputs] != [[SAMPLES]] or [o.shape[1:] for o in outputs] != [[len(_TO_SCALE)]]:
            raise InputError(
                f"{path}: expected DNSMOS P.835, with an input [N, {SAMPLES}] and an output [N, {len(_TO_SCALE)}], "
                f"found {_shapes(inputs)} and {_shapes(outputs)}"
            )
        self.input = inputs[0].name

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, lambda proper: [self._score(a) for a in proper], needs_audio=True)

    def _score(self, answer: Answer) -> Outcome:
        windows = dnsmos_windows(resample(answer.utterance.waveform, answer.utterance.sample_rate, RATE))
        raw = np.concatenate([self.session.run(None, {self.input: window[None]})[0] for window in windows])
        if not np.isfinite(raw).all():
            return Unavailable("the model's scores are not finite")
        scores = {
            name: float(np.polyval(powers, raw[:, i]).mean()) for i, (name, powers) in enumerate(_TO_SCALE.items())
        }
        return Scored(min(max(scores["overall"], self.low), self.high), scores)


def dnsmos_windows(waveform: np.ndarray) -> list[np.ndarray]:
    """9.01 s each, one second apart: float [samples] at 16 kHz → float32 [144160] each, ⌊seconds⌋ − 9 of them or one.

    Shorter audio is doubled until it is long enough. All as the published dnsmos_local.py has it, so that scores can
    be compared: by a rounding of its own it leaves out the windows that begin 7 to 23 and 119 to 122 s from the start.
    """
    while len(waveform) < SAMPLES:
        waveform = np.concatenate([waveform, waveform])
    starts = range(max(1, len(waveform) // RATE - 9))
    whole = [i for i in starts if int((i + SECONDS) * RATE) - i * RATE == SAMPLES]
    return [waveform[i * RATE : i * RATE + SAMPLES].astype(np.float32) for i in whole]


def _shapes(values) -> str:
    return ", ".join(f"[{', '.join(map(str, value.shape))}]" for value in values) or "none"
