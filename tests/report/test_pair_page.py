"""The page of a dataset card: it plays what is there, requests nothing else, and shows text as text."""

import re

from elocute.report.pair_page import write_pair_page


def card(**changes):
    numbers = {"mean": 2.5, "std": 0.5, "min": 1.0, "max": 4.0}
    one = {
        "why": "widest margin",
        "id": "q1",
        "question_text": "<script>four</script>",
        "audios": ["questions/q 1.wav"],
        "sft_target_text": "right",
        "sft_target_audio": "units.safetensors#a",
        "rejected_text": "wrong & long",
        "chosen_score": 5.0,
        "rejected_score": 1.0,
        "chosen_key": "3",
        "rejected_key": "0",
    }
    return {
        "origin": {"options": {"input": "candidates.jsonl"}},
        "output": {"path": "runs/pairs.jsonl"},
        "rows": {"read": 1200, "with_pairs": 900, "dropped": {"gap below 1": {"rows": 300, "first": [1]}}},
        "candidates": {"read": 9600, "unusable": {"broken": 400}},
        "pairs": {"found": 900, "dropped": {}, "written": 900},
        "chosen_score": numbers,
        "rejected_score": numbers,
        "score_gap": None,
        "weight": numbers,
        "histogram": [{"from": 1.0, "below": 2.0, "pairs": 300}, {"from": 2.0, "below": 3.0, "pairs": 600}],
        "examples": [one],
        **changes,
    }


def test_the_page_shows_and_plays(tmp_path):
    page = write_pair_page(card(), tmp_path / "pairs.card.html").read_text()
    assert '<audio controls preload="none" aria-label="question" src="questions/q%201.wav">' in page
    assert "encoded audio: units.safetensors#a" in page and "no audio" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "wrong &amp; long" in page
    assert page.index("candidates: broken") < page.index("rows: gap below 1")
    assert re.findall(r'width="(\d+\.\d)" height="16"', page) == ["135.0", "270.0"]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page) and "default-src 'none'" in page


def test_a_page_without_gaps_or_drops(tmp_path):
    empty = card(histogram=[], rows={"read": 1, "with_pairs": 1, "dropped": {}}, candidates={"read": 2, "unusable": {}})
    page = write_pair_page(empty, tmp_path / "pairs.card.html").read_text()
    assert "Nothing." in page and "Gap between" not in page
