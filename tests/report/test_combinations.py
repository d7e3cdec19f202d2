"""The section that plays every combination: how it is laid out, what is drawn, and that nothing slips out of it."""

import json
import re
from itertools import product

import numpy as np
import pytest
from fake_run import RATE, save_tone, write_lines
from test_page import Reader

from elocute.errors import InputError
from elocute.prosody.measure import Contours, contours
from elocute.report.combinations import every_combination
from elocute.report.contours import LEFT, PITCH, Scales, drawing
from elocute.report.page import write_report

EMOTIONS, SPEEDS = ("Neutral", "Happy", "Sad", "Angry"), ("Slow", "Medium", "Fast")


def spoken(folder, moment: str, every: list[dict]) -> list[dict]:
    """A line for each combination, with a tone for its sound."""
    rows = []
    for number, labels in enumerate(every):
        audio = f"combinations-{moment}/{number}.wav"
        save_tone(folder / audio, 120 + 10 * number)
        rows.append(
            {
                "id": ", ".join(f"{name}: {label}" for name, label in labels.items()),
                "question_text": "The train leaves at nine.",
                "labels": labels,
                "audio": audio,
                "heard": "the train",
                "errors": 3 if moment == "before" else 0,
                "words": 5,
                "labels_heard": {name: "Slow" if name == "speed" else None for name in labels},
                "unjudged": {},
                "measured": None,
                "broken": None,
            }
        )
    return rows


def grid(**dimensions) -> list[dict]:
    return [dict(zip(dimensions, labels, strict=True)) for labels in product(*dimensions.values())]


def headings(html: str) -> list[str]:
    return re.findall(r"<h[34]>(.*?)</h[34]>", html)


def test_one_dimension_is_a_line_and_the_other_its_columns(tmp_path):
    every = grid(emotion=EMOTIONS, speed=SPEEDS)
    html = every_combination(tmp_path, spoken(tmp_path, "before", every), spoken(tmp_path, "after", every))
    Reader(html)
    line = [f"speed: {speed}" for speed in SPEEDS]
    assert headings(html) == [word for emotion in EMOTIONS for word in (f"emotion: {emotion}", *line)]
    assert html.count("<svg") == html.count("<audio") == 24 and html.count("--columns:3") == 4
    assert "“The train leaves at nine.”" in html and "in all 12 combinations" in html
    assert html.count("✗ 3 of 5 words wrong") == 12 == html.count("✓ all words")
    assert html.count("✓ speed: Slow") == 8 and html.count("✗ speed: Slow heard") == 16
    assert html.count("✗ emotion: nothing heard") == 24


@pytest.mark.parametrize(
    ("every", "shown"),
    [
        (grid(speed=SPEEDS), [f"speed: {one}" for one in SPEEDS]),
        (grid(speed=SPEEDS, emotion=EMOTIONS)[:5], ["emotion: Neutral", "speed: Slow", "speed: Medium"]),
        (grid(a="PQ", b="RS", c="TU")[:3], ["a: P, b: R", "c: T", "c: U", "a: P, b: S", "c: T"]),
        ([{"emotion": "Sad"}, {"emotion": "Angry"}, {"speed": "Slow"}],
         ["emotion", "emotion: Sad", "emotion: Angry", "speed", "speed: Slow"]),
    ],
)  # fmt: skip
def test_other_schemas(tmp_path, every, shown):
    html = every_combination(tmp_path, [], spoken(tmp_path, "after", every))
    assert headings(html)[: len(shown)] == shown
    assert ("each label is spoken alone" in html) == (len(every[-1]) == 1 and len(every) == 3 and "emotion" in every[0])


def test_what_is_missing_is_said(tmp_path):
    rows = spoken(tmp_path, "before", grid(speed=SPEEDS))
    rows[0]["audio"], rows[0]["broken"] = None, "no end"
    (tmp_path / rows[1]["audio"]).unlink()
    html = every_combination(tmp_path, rows, [])
    assert "no audio" in html and "✗ broken" in html and "audio not found: combinations-before/1.wav" in html
    assert html.count("<svg") == 1


def test_the_page_has_the_section_and_escapes_it(small_run):
    assert 'id="labels"' not in write_report(small_run).read_text()
    evil = "\"'><script>alert(1)</script>"
    samples = small_run / "samples"
    rows = spoken(samples, "after", [{"emotion": evil, evil: "Slow"}, {"emotion": "Sad", evil: "Fast"}])
    said = dict.fromkeys(("question_text", "heard", "broken"), evil) | {"labels_heard": {evil: evil}}
    rows = [row | said | {"unjudged": {evil: evil}} for row in rows]
    write_lines(samples / "combinations-after.jsonl", rows)
    html = write_report(small_run).read_text()
    tags = Reader(html).tags
    assert 'id="labels"' in html and "<script" not in html and html.count("&lt;script&gt;alert(1)") > 10
    assert not [attrs for _, attrs in tags if any("alert" in name for name in attrs)]
    for key, value in (("labels_heard", ["Sad"]), ("errors", None)):
        write_lines(samples / "combinations-after.jsonl", [rows[0] | {key: value}])
        with pytest.raises(InputError, match=f"combinations-after.jsonl, line 1: .*{key}"):
            write_report(small_run)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_drawing_is_where_its_scales_say(tmp_path):
    """A tone of 200 Hz, silence, one of 100 Hz an octave below: two lines, a gap between them."""
    tone = [0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 2) / RATE) for hertz in (200, 100)]
    found = contours(np.concatenate([tone[0], np.zeros(RATE // 2), tone[1]]), RATE)
    scales = Scales.of([found])
    svg = drawing(found, scales, "c0", "both")
    high, low = (points(part) for part in re.search(r'class="line" d="M(.*?)"', svg)[1].split("M"))
    assert {round(y) for _, y in high[3:-3]} == {round(scales.y(200))}
    assert {round(y) for _, y in low[3:-3]} == {round(scales.y(100))}
    assert 0 < scales.y(200) < scales.y(100) < PITCH and high[-1][0] < scales.x(55) < scales.x(95) < low[0][0]
    assert scales.x(-0.5) == LEFT and 'aria-label="both: 1.5 s, pitch 100 to 200 Hz' in svg
    assert ">100</text>" in svg and ">200</text>" in svg and ">1 s</text>" in svg
    area = points(re.search(r'class="band" d="M(.*?)"', svg)[1])
    silent = [y for x, y in area if scales.x(60) < x < scales.x(90)]
    assert set(silent) == {max(y for _, y in area)}  # on the floor


def test_scales_are_common_and_nothing_to_draw_is_no_error():
    nothing = Contours(np.zeros(0), np.zeros(0), np.zeros(0, bool))
    mute = Contours(np.zeros(50), np.full(50, -20.0), np.ones(50, bool))
    for found in ([], [nothing], [mute], [nothing, mute]):
        scales = Scales.of(found)
        for one in found:
            assert "without a voice" in drawing(one, scales, "c7", "it")
    voiced = Contours(np.full(100, 150.0), np.full(100, -10.0), np.ones(100, bool))
    scales = Scales.of([mute, voiced])
    assert scales.seconds == pytest.approx(1.0) and scales.loudest == -10 and scales.low < 110 < 200 < scales.high


def test_answers_read_aloud_are_shown_with_their_labels(small_run):
    samples = small_run / "samples"
    for moment in ("before", "after"):
        write_lines(samples / f"{moment}.jsonl", spoken(samples, moment, grid(emotion=("Sad",), speed=SPEEDS)))
    values = {moment: {"wer": {"value": 0.6, "n": 3, "ci95": [0.2, 0.9]}} for moment in ("before", "after")}
    (small_run / "eval.json").write_text(json.dumps(values | {"paired": {"wer": {"p": 0.25, "n": 3}}}))
    html = write_report(small_run).read_text()
    Reader(html)
    assert "emotion: Sad, speed: Medium" in html and "All words: 3 became right, 0 became wrong, of 3" in html
    assert "p = 0.25" in html and "below 0.05" in html and "(no text)" not in html.split('id="rollouts"')[0]
