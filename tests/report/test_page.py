import json
import re
from html.parser import HTMLParser

import pytest

from elocute.errors import InputError
from elocute.report.page import write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Tags with their attributes, and a check that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def html(finished_run):
    path = write_report(finished_run)
    assert path == finished_run / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_else(html):
    """No script, and nothing is fetched: every address is a data URI or a place on the page."""
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object"}
    addresses = [attrs[name] for _, attrs in tags for name in ("src", "href", "poster", "srcset") if name in attrs]
    assert all(address.startswith(("data:audio/wav;base64,", "#")) for address in addresses)
    assert "url(" not in html and "@import" not in html
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_links_lead_somewhere(html):
    tags = Reader(html).tags
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a"} <= ids


def test_page_shows_what_was_run_and_what_came_out(html, finished_run):
    values = json.loads((finished_run / "eval.json").read_text())
    for moment in ("before", "after"):
        assert f"{100 * values[moment]['answer_accuracy_text']['value']:.1f} %" in html
    for part in (
        "starter/model",
        "elocute train recipes/starter/wavalign.yaml",
        "2026-05-04",
        "40 of 40",
        "temperature: 0.9",
        "2.13.0",
        "difficulty: hard",
        "12 of 60 recorded answers",
    ):
        assert part in html, part
    assert "no result yet" not in html
    assert len([tag for tag, _ in Reader(html).tags if tag == "audio"]) >= 36


def test_unjudged_rollouts_are_told(html):
    assert "2 of 1280 rollouts could not be judged" in html


def test_page_of_a_run_in_progress(small_run):
    (small_run / "eval.json").unlink()
    (small_run / "samples" / "after.jsonl").unlink()
    html = write_report(small_run).read_text(encoding="utf-8")
    Reader(html)
    assert "This run has no result yet: there is no evaluation" in html and "Not evaluated." in html


def test_not_finite_metrics_are_told(small_run):
    with (small_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss/total": NaN}\n')
    assert "loss/total was not a finite number, first at step 11" in write_report(small_run).read_text(encoding="utf-8")


def test_everything_a_user_wrote_is_escaped(tmp_path, small_run):
    evil = "\"'><script>alert(1)</script><b>&amp;"
    folder = small_run.rename(tmp_path / "<script>run")
    (folder / "recipe.yaml").write_text(f"steps: 10\nmodel: {json.dumps(evil)}\n# {evil}\n")
    (folder / "environment.json").write_text(json.dumps({key: evil for key in ("command", "started", "device")}))
    values = json.loads((folder / "eval.json").read_text())
    for side in ("before", "after"):
        values[f"by_{evil}"] = values.get(f"by_{evil}", {}) | {side: {evil: values[side]}}
    (folder / "eval.json").write_text(json.dumps(values | {"ear": evil}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 11, f"reward/{evil}": 1.0, f"{evil}/x": 2.0, evil: float("nan")}) + "\n")
    fields = ("id", "question_text", "reference", "text", "heard", "broken", "audio", "question_audio", "reward")
    row = {field: evil for field in fields} | {"rewards": {evil: evil}}
    for name in ("before", "after", "step-10"):
        (folder / "samples" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    html = write_report(folder).read_text(encoding="utf-8")
    tags = {tag for tag, _ in Reader(html).tags}
    assert "script" not in tags and "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") > 20
    # Nothing slipped out of an attribute either.
    assert not [attrs for _, attrs in Reader(html).tags if any("alert" in name for name in attrs)]


def test_alarms_stand_at_the_top(small_run):
    lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[4:7]:
        line["alarm/measured/guard/pitch_range"] = 1
    for line in lines[5:]:
        line["alarm/spread/judge"] = 1
    (small_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(small_run).read_text()
    assert "Alarm from step 5, until step 7: guard: the voice became flat (pitch_range)." in html
    assert "Alarm from step 6, still: judge: gave all answers" in html
    assert "alarm/" not in html and "Other: alarm" not in html


def test_a_second_report_replaces_the_first(small_run):
    first = write_report(small_run).read_bytes()
    assert write_report(str(small_run)).read_bytes() == first
    assert [path.name for path in small_run.iterdir() if "report" in path.name] == ["report.html"]


def test_bad_input_leaves_no_page(small_run):
    with (small_run / "metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=re.escape(f"{small_run / 'metrics.jsonl'}, line 11: not valid JSON")):
        write_report(small_run)
    assert not (small_run / "report.html").exists()


def test_a_page_says_which_step_the_model_is_of(small_run):
    assert "best step by data.dev" not in write_report(small_run).read_text()
    lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["dev/best_step"] = 4 if line["step"] in (4, 8) else None
    (small_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "<dt>best step by data.dev</dt><dd>4</dd>" in write_report(small_run).read_text()
