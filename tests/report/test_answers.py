import base64
import re

import pytest

from elocute.errors import InputError
from elocute.report.answers import before_and_after, choose, pair_up, player, rollouts_over_time


def row(id, right=False, audio=None, **more):
    return {
        "id": id,
        "text": f"answer {id}",
        "correct_text": right,
        "correct_speech": right,
        "broken": None,
        "audio": audio,
        **more,
    }


def test_pairs_join_by_id_whatever_the_order():
    pairs = pair_up([row("a"), row("b")], [row("c"), row("b", True), row("a")])
    ids = [(pair.before and pair.before["id"], pair.after and pair.after["id"]) for pair in pairs]
    assert ids == [("a", "a"), ("b", "b"), (None, "c")]


def test_gained_and_lost_come_in_turn_then_changes_then_the_rest():
    before = [row("same"), row("text"), row("g1"), row("g2"), row("g3"), row("l1", True)]
    after = [row("same"), row("text") | {"text": "else"}, row("g1", True), row("g2", True), row("g3", True), row("l1")]
    assert [p.after["id"] for p in choose(pair_up(before, after), 10)] == ["g1", "l1", "g2", "g3", "text", "same"]
    assert [p.after["id"] for p in choose(pair_up(before, after), 2)] == ["g1", "l1"]


def test_answers_that_can_be_played_come_first():
    before = [row("mute"), row("sound", audio="x.wav")]
    after = [row("mute", True), row("sound", audio="y.wav")]
    assert [p.after["id"] for p in choose(pair_up(before, after), 2)] == ["sound", "mute"]


def test_a_newly_broken_answer_is_a_loss():
    (pair,) = pair_up([row("a", True)], [row("a", True) | {"broken": "no end"}])
    assert pair.gained() < 0


def test_says_how_many_of_how_many_and_counts_all_flips(tmp_path):
    before = [row(str(i)) for i in range(30)] + [row("lost", True)]
    after = [row(str(i), i < 9) for i in range(30)] + [row("lost")]
    html = before_and_after(tmp_path, before, after)
    assert "12 of 31 recorded answers" in html and html.count("<article") == 12
    assert "As written: 9 became right, 1 became wrong, of 31 (McNemar, exact: p = 0.021)" in html


def test_answers_show_what_was_heard_and_marks(tmp_path):
    html = before_and_after(tmp_path, [row("a", heard="it is six")], [row("a", True) | {"broken": "no end"}])
    for part in ("heard: ", "it is six", "✗ written: wrong", "✓ written: right", "no end"):
        assert part in html


def test_only_before_is_there_while_a_run_goes_on(tmp_path):
    html = before_and_after(tmp_path, [row("a", True)], [])
    assert "not evaluated" in html and "McNemar" not in html
    assert "No evaluated answers" in before_and_after(tmp_path, [], [])


def test_player_embeds_the_file_as_it_is(finished_run):
    html = player(finished_run / "samples", "before/0.wav", "Answer")
    data = re.search(r'src="data:audio/wav;base64,([^"]+)"', html)[1]
    assert base64.b64decode(data) == (finished_run / "samples/before/0.wav").read_bytes()


def test_player_embeds_nothing_but_wav_files(tmp_path):
    (tmp_path / "secret.txt").write_text("token")
    with pytest.raises(InputError, match="secret.txt: expected a WAV file"):
        player(tmp_path, "secret.txt", "Answer")


def test_player_says_what_is_missing(tmp_path):
    assert "audio not found: gone.wav" in player(tmp_path, "gone.wav", "Answer")
    assert "no audio" in player(tmp_path, None, "Answer")


def test_rollouts_take_first_and_last_step_and_show_reasons(tmp_path):
    rows = [row("q", reward=0.25, rewards={"judge": "Unavailable: no reply", "exact": 1.0})] * 6
    html = rollouts_over_time(tmp_path, {step: rows for step in range(10, 201, 10)})
    assert re.findall(r"<h3>Step (\d+)", html) == ["10", "40", "80", "120", "160", "200"]
    assert "6 of 20 recorded steps" in html and "4 of 6 answers" in html
    assert "Unavailable: no reply" in html and "0.25" in html and html.count("<article") == 24
