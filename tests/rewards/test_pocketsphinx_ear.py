"""The offline recogniser. Tests that need speech use the WAVs that ship with the starter."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jiwer
import numpy as np
import pytest
from answers import tone

from elocute.data.audio import load_audio
from elocute.data.normalise import normalise
from elocute.errors import InputError, RunError
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar, bigram_arpa, small_dictionary

ROWS = Path(__file__).parents[2] / "starter" / "data" / "wavs.jsonl"
VOCABULARY = ["thirty seven", "seventy", "cold", "c a t"]


@pytest.fixture(scope="module")
def spoken():
    """[(text, waveform)] of the shipped answers, and their sample rate."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    sounds = [load_audio(ROWS.parent / row["sft_target_audio"]) for row in rows]
    (rate,) = {rate for _, rate in sounds}
    return [(row["sft_target_text"], waveform) for row, (waveform, _) in zip(rows, sounds, strict=True)], rate


def test_it_hears_the_shipped_answers(spoken):
    pairs, rate = spoken
    texts, waveforms = zip(*pairs, strict=True)
    assert len(texts) >= 10
    heard = PocketSphinxEar(words=texts).transcribe(waveforms, rate)
    assert jiwer.wer([normalise(t) for t in texts], [normalise(h) for h in heard]) <= 0.1


def test_what_was_heard_before_and_who_listens_do_not_matter(spoken):
    pairs, rate = spoken
    texts, waveforms = zip(*pairs, strict=True)
    words = sorted({word for text in texts for word in normalise(text).split()})
    straight = PocketSphinxEar(words).transcribe(waveforms, rate)
    order = list(range(len(waveforms)))
    random.Random(0).shuffle(order)
    ear = PocketSphinxEar(words, workers=2)
    try:
        shuffled = ear.transcribe([waveforms[i] for i in order], rate)
    finally:
        ear.close()
    assert [straight[i] for i in order] == shuffled


@pytest.mark.parametrize("words", [None, VOCABULARY])
def test_any_waveform_is_heard(words):
    noise = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    waveforms = [np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(16_000, np.float32), tone(0.3), 100 * noise]
    heard = PocketSphinxEar(words).transcribe(waveforms, 22_050)
    assert heard[0] == "" and all(isinstance(h, str) for h in heard) and len(heard) == 5


def test_words_the_dictionary_lacks_are_named():
    with pytest.raises(InputError, match="lacks grumblefax, zzyzzx"):
        PocketSphinxEar(["the zzyzzx", "seventy grumblefax"])
    with pytest.raises(InputError, match="at least one word"):
        PocketSphinxEar(["", "?"])


def test_small_dictionary_keeps_every_pronunciation():
    lines = small_dictionary(["a cat"]).splitlines()
    assert sorted(line.split()[0] for line in lines) == ["a", "a(2)", "cat"]


def test_bigrams_are_a_distribution_that_lets_any_word_follow_any_other():
    sentences = ["one two", "one three", "two"]
    unigram, backoff, bigram = {}, {}, {}
    for line in bigram_arpa(sentences).splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].lstrip("-").replace(".", "").isdigit():
            words = [f for f in fields[1:] if not f.lstrip("-").replace(".", "").isdigit()]
            if len(words) == 2:
                bigram[tuple(words)] = 10 ** float(fields[0])
            else:
                unigram[words[0]] = 10 ** float(fields[0])
                backoff[words[0]] = 10 ** float(fields[2]) if len(fields) > 2 else None
    successors = set(unigram) - {"<s>"}
    assert math.fsum(unigram[w] for w in successors) == pytest.approx(1, abs=1e-4)
    for word in set(unigram) - {"</s>"}:
        chances = [bigram.get((word, s), backoff[word] * unigram[s]) for s in successors]
        assert min(chances) > 0 and math.fsum(chances) == pytest.approx(1, abs=1e-3)
    assert bigram["one", "two"] > backoff["one"] * unigram["one"]


def test_a_dead_worker_is_a_clear_error_and_the_next_call_starts_anew():
    ear = PocketSphinxEar(VOCABULARY, workers=2)
    try:
        ear.transcribe([tone()] * 2, 22_050)
        for pid in list(ear._pool._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunError, match="recogniser process died"):
            ear.transcribe([tone()] * 4, 22_050)
        assert len(ear.transcribe([tone()], 22_050)) == 1
    finally:
        ear.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, None])
def test_workers_end_with_their_parent(tmp_path, how):
    script = tmp_path / "listen.py"
    script.write_text(
        "import signal\nimport time\nimport numpy as np\nfrom elocute.rewards.asr import PocketSphinxEar\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background inherit it ignored
        "    ear = PocketSphinxEar(['cold'], workers=2)\n"
        "    ear.transcribe([np.zeros(800, np.float32)] * 4, 16000)\n"
        "    print(*ear._pool._processes, flush=True)\n" + ("    time.sleep(60)\n" if how else "")
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if how is signal.SIGINT:
        os.killpg(parent.pid, how)  # what a terminal does on Ctrl-C
    elif how:
        parent.send_signal(how)
    _, errors = parent.communicate(timeout=60)
    end = time.monotonic() + 5
    while any(map(_alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
    if how is signal.SIGINT:
        assert errors.count("Traceback") == 1, errors  # the parent's own; workers leave Ctrl-C to it
    if how is None:
        assert errors == ""


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_no_process_leaves_files_of_its_own_behind(tmp_path, how):
    """However it ends: the words' model is kept once, whoever listens, where it is found again."""
    script = "import os\nfrom elocute.rewards.asr import PocketSphinxEar\near = PocketSphinxEar(['cold'])\n"
    script += f"os.kill(os.getpid(), {int(how)})\n" if how else ""
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "ELOCUTE_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == (-how if how else 0), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["model.arpa", "words.dict"]


def test_other_words_do_not_share_a_model(tmp_path, monkeypatch, spoken):
    """An ear goes on hearing its own words when another one is made."""
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path))
    pairs, rate = spoken
    text, waveform = pairs[0]
    ear, other = PocketSphinxEar([text]), PocketSphinxEar(["yellow zebra"])
    assert ear.transcribe([waveform], rate) == [normalise(text)] != other.transcribe([waveform], rate)
    assert len(list((tmp_path / "ears").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be written .*; ELOCUTE_CACHE may name another folder$"):
        PocketSphinxEar(["cold"])


def _alive(pid: int) -> bool:
    """A process that ended but was not yet reaped by its new parent counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
