"""What a log says of long work: how far, how fast, how long still."""

import time

from elocute import progress
from elocute.progress import RunProgress


def test_a_log_has_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with RunProgress() as told:
        for done in (10, 20, 110):  # 10 were there when this process began
            told("prompts", done, 110, {"tokens_per_s": 512.4, "outcomes/unavailable": 0})
            now[0] += 40 if done == 10 else 360
    assert capsys.readouterr().err.splitlines() == [
        "prompts 10/110 unavailable 0  512 tokens/s",
        "prompts 20/110 0.25/s  unavailable 0  512 tokens/s  ETA 0:06:00",
        "prompts 110/110 0.25/s  unavailable 0  512 tokens/s",
    ]
    with RunProgress(quiet=True) as told:
        told("prompts", 1, 2, {})
    assert capsys.readouterr().err == ""
