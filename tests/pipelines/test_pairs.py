"""Which pairs are made: against a naive twin on random candidates, and one rule at a time."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.data.audio import save_wav
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.options import PairOptions
from tests.data.sounds import tone
from tests.pipelines.naive_pairs import naive_pairs
from tests.pipelines.pair_files import ASK, candidate, row


def build(folder, rows, **told):
    """(card, pair rows) of candidate rows."""
    (folder / "candidates.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    options = PairOptions(input=str(folder / "candidates.jsonl"), output=str(folder / "pairs.jsonl"), **told)
    card = build_pairs(options, part_bytes=600)
    return card, [json.loads(line) for line in (folder / "pairs.jsonl").read_bytes().splitlines()]


def keys(pairs):
    return [(pair["chosen_key"], pair["rejected_key"]) for pair in pairs]


texts = st.sampled_from([None, "", "  ", "four", " four ", "five", "it is four", "\u2028 ünï"])
scores = st.none() | st.fixed_dictionaries(
    {}, optional={"semantic_score": st.none() | st.integers(1, 3), "paralinguistic_score": st.sampled_from([1, 2.5, 3])}
)
candidates = st.fixed_dictionaries(
    {"output-text": texts, "gemini_score": scores, "measures": st.fixed_dictionaries({"auto_bleu": st.floats(0, 0.2)})},
    optional={
        "output-audio": st.sampled_from([None, "a.wav", "/b.wav"]),
        "output-units": st.sampled_from([None, [], [1, 22], [3], [[1, 22], [3, 4]], [[1], [22], [3], [4]]]),
        "output-tokens": st.sampled_from([None, [], [7, 101]]),
        "score": st.none() | st.sampled_from([0, 0.3, 0.1 + 0.2, 1, 2.5]),
        "broken": st.sampled_from([None, "", "no end"]),
        "outcome": st.sampled_from([None, {"kind": "scored"}, {"kind": "invalid", "reason": "silent"}]),
        "seconds": st.sampled_from([None, 1, 2.5]),
        "seed": st.integers(),
    },
)
rows = st.fixed_dictionaries(
    {"output": st.lists(candidates, max_size=5).map(lambda some: {str(i): one for i, one in enumerate(some)})},
    optional={
        "sft_target_text": st.sampled_from([None, "", "four", "six"]),
        "sft_target_units": st.sampled_from([None, [1, 22]]),
        "sft_target_tokens": st.sampled_from([None, [9]]),
        "chosen_score": st.none() | st.integers(1, 9),
        "rejected_text": st.just("stale"),
        "weight": st.just("stale"),
        "source_dataset": st.just("theirs"),
        "other field": st.sampled_from([None, {"a": ["}\n", 1.50]}]),
        "ünï": st.just("x"),
    },
)
modes = st.sampled_from(["sum", "semantic", "paralinguistic", "weighted", "reward"])
rules = st.one_of(
    st.sampled_from([{"rule": "rank"}, {"rule": "best_worst"}, {"chosen_source": "sft_target"}]),
    st.fixed_dictionaries({"rule": st.sampled_from(["rank", "best_worst"]), "max_auto_bleu": st.floats(0, 0.2)}),
    st.just({"rule": "threshold", "chosen_min_score": 2.0, "rejected_max_score": 1.0}),
)


@settings(max_examples=60)
@given(
    st.lists(rows, min_size=1, max_size=6),
    modes,
    rules,
    st.sampled_from([None, 0.0, 0.4, 2.0]),
    st.integers(1, 3),
    st.sampled_from(["text", "any"]),
)
def test_equal_to_the_naive_twin(some, mode, rule, gap, most, differ_in):
    some = [{**ASK, "id": i, "units_codec": "9f", **one} for i, one in enumerate(some)]
    told = {"score_mode": mode, "min_score_gap": gap, "pairs_per_prompt": most, "differ_in": differ_in, **rule}
    weights = {"semantic_weight": 0.7, "paralinguistic_weight": 0.3} if mode == "weighted" else {}
    wanted, margins, dropped, unusable = naive_pairs(
        some, input="candidates.jsonl", weights=(0.7, 0.3), thresholds=(2, 1, 0.1), **told
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not wanted:
            with pytest.raises(InputError, match="no pair is left") as error:
                build(folder, some, **told, **weights)
            assert all(f"{why}: {count}" in str(error.value) for why, count in (dropped + unusable).items())
            return
        card, pairs = build(folder, some, **told, **weights)
        assert len(read_rows(folder / "pairs.jsonl", check_audio=False)) == len(pairs)  # as training reads them
    measured = [margin for margin in margins if margin is not None]
    mean = math.fsum(measured) / len(measured) if measured else 1
    for pair, margin in zip(pairs, margins, strict=True):
        assert pair.pop("weight") == pytest.approx(1 if margin is None else margin / mean, rel=1e-5)
    assert pairs == wanted
    assert {why: found["rows"] for why, found in card["rows"]["dropped"].items()} == dropped
    assert card["candidates"]["unusable"] == unusable
    assert card["rows"]["read"] == len(some) == card["rows"]["with_pairs"] + dropped.total()


def test_ties_go_by_semantic_then_acoustic_then_the_shorter(tmp_path):
    semantic = row(candidate(2, 3, "a"), candidate(3, 2, "b"), candidate(1, 1, "c"), candidate(1, 1, "longer"))
    shorter = row(candidate(3, 3, "bb"), candidate(3, 3, "a"), candidate(1, 1, "d"), candidate(2, 0, "c"))
    sounds = [candidate(3, 3, "a", seconds=2), candidate(3, 3, "b", seconds=1), candidate(1, 1, "c")]
    spoken = row(*(one | {"output-text": ""} for one in sounds))
    _, pairs = build(tmp_path, [semantic, shorter, spoken])
    assert keys(pairs) == [("1", "3"), ("1", "2"), ("1", "2")]


def test_chosen_and_rejected_are_never_one_candidate_nor_one_answer(tmp_path):
    lone, tied = row(candidate()), row(candidate(), candidate(text="five"))
    same = row(candidate(5, 5, "yes"), candidate(1, 1, " yes"))
    other = row(candidate(5, 5, "yes"), candidate(1, 1, "yes"), candidate(2, 2, "no"))
    card, pairs = build(tmp_path, [lone, tied, same, other])
    assert keys(pairs) == [("0", "2")] and pairs[0]["score_gap"] == 6
    assert {why: found["first"] for why, found in card["rows"]["dropped"].items()} == {
        "fewer than two usable candidates": [1],
        "all candidates score the same": [2],
        "all candidates are the same answer": [3],
    }


def test_the_same_words_may_differ_in_sound_if_that_is_asked_for(tmp_path):
    said = [candidate(3, 5, "yes"), candidate(3, 1, "yes")]
    said[1]["output-audio"] = "another.wav"
    units = row(*(one | {"output-units": [1, 2]} for one in said), units_codec="9f")
    card, pairs = build(tmp_path, [row(*said), units], differ_in="any")
    assert len(pairs) == 1 and "all candidates are the same answer" in card["rows"]["dropped"]
    silent = row(*({**one, "output-text": "", "output-units": [i]} for i, one in enumerate(said)), units_codec="9f")
    (tmp_path / "textless").mkdir()
    assert len(build(tmp_path / "textless", [silent])[1]) == 1
    (tmp_path / "unnamed").mkdir()
    with pytest.raises(InputError, match="candidates.jsonl:1: units_codec: expected the digest of the codec"):
        build(tmp_path / "unnamed", [{**silent, "units_codec": None}])


def test_the_gap_is_between_the_two_that_are_used(tmp_path):
    scored = row(candidate(5, 5, "a"), candidate(2, 2, "b"), sft_target_text="t", chosen_score=6)
    near = row(candidate(5, 5, "a"), candidate(2, 2, "b"), sft_target_text="t", chosen_score=4.5)
    unscored = row(candidate(5, 5, "a"), candidate(2, 2, "b"), sft_target_text="t")
    none = row(candidate(5, 5, "a"), candidate(2, 2, "b"))
    card, pairs = build(tmp_path, [scored, near, unscored, none], chosen_source="sft_target")
    assert [(pair.get("chosen_score"), pair.get("score_gap")) for pair in pairs] == [(6, 2), (None, None)]
    assert keys(pairs) == [("sft_target", "1")] * 2 and [pair["weight"] for pair in pairs] == [1, 1]
    assert set(card["rows"]["dropped"]) == {"gap below 1", "no supervised target"}
    (tmp_path / "asked").mkdir()
    card, _ = build(tmp_path / "asked", [scored, unscored], chosen_source="sft_target", min_score_gap=1.0)
    assert "the target has no chosen_score, so there is no gap to measure" in card["rows"]["dropped"]


def test_a_gap_is_not_lost_in_the_last_digit(tmp_path):
    close = row(candidate(4, 5, "a"), candidate(4, 3.666666666666667, "b"))
    options = {"score_mode": "weighted", "semantic_weight": 0.7, "paralinguistic_weight": 0.3}
    _, pairs = build(tmp_path, [close], min_score_gap=0.4, **options)
    assert pairs[0]["score_gap"] == 0.4 and pairs[0]["chosen_score"] == 4.3


def test_thresholds_reject_what_repeats_whatever_its_score(tmp_path):
    def said(score, bleu, text):
        return {"output-text": text, "score": score, "measures": {"auto_bleu": bleu}}

    repeats = row(said(4, 0.0, "good"), said(5, 0.5, "again and again"))
    bad = row(said(3, 0.1, "good"), said(1, 0.1, "bad"), said(2, 0.1, "so so"))
    neither = row(said(2, 0, "a"), said(2, 0, "b"))
    nothing_bad = row(said(3, 0, "a"), said(4, 0, "b"))
    card, pairs = build(tmp_path, [repeats, bad, neither, nothing_bad], rule="threshold", score_mode="reward")
    assert keys(pairs) == [("0", "1"), ("0", "1")] and [pair["score_gap"] for pair in pairs] == [-1, 2]
    assert [pair["weight"] for pair in pairs] == [1.2, 0.8]  # a repetition counts as one of the worst: 4 - 1 and 3 - 1
    assert set(card["rows"]["dropped"]) == {"no candidate to choose and none to reject", "no candidate to reject"}


@pytest.mark.parametrize("told", [{"rule": "threshold"}, {"max_auto_bleu": 0.1}])
def test_repetition_must_have_been_measured(tmp_path, told):
    with pytest.raises(InputError, match=r"candidates.jsonl:1: output.0.measures.auto_bleu: expected a number"):
        build(tmp_path, [row(candidate(), candidate(text="five"))], **told)


def test_what_repeats_may_be_rejected_but_is_never_chosen(tmp_path):
    """Align-SLM's perplexity feedback: the best that does not repeat, against the worst whatever it is."""
    repeats, plain = {"measures": {"auto_bleu": 0.5}}, {"measures": {"auto_bleu": 0.1}}
    first = row(candidate(5, 5, "a") | repeats, candidate(4, 4, "b") | plain, candidate(1, 1, "c") | repeats)
    last = row(candidate(5, 5, "a") | repeats, candidate(4, 4, "b") | plain)
    card, pairs = build(tmp_path, [first, last], max_auto_bleu=0.1)
    assert keys(pairs) == [("1", "2")]
    assert set(card["rows"]["dropped"]) == {"no candidate to choose: the better ones are invalid or repeat themselves"}


@pytest.mark.parametrize("rule", ["best_worst", "rank", "threshold"])
def test_an_invalid_answer_may_be_rejected_but_is_never_chosen(tmp_path, rule):
    def said(score, text, kind="scored"):
        sound = {"output-units": [len(text), score], "measures": {"auto_bleu": 0.0}}
        return {"output-text": text, "score": score, "outcome": {"kind": kind}} | sound

    silent = row(said(4, "good"), said(0, "", "invalid"), said(0, "", "invalid"), units_codec="9f")
    high = row(said(5, "", "invalid"), said(4, "good"), said(1, "bad"), units_codec="9f")
    _, pairs = build(tmp_path, [silent, high], rule=rule, score_mode="reward", differ_in="any")
    assert keys(pairs) == [("0", "2"), ("1", "2")] and "rejected_text" not in pairs[0]


def test_ranks_keep_prompts_that_are_uniformly_good(tmp_path):
    good = row(candidate(5, 5, "a"), candidate(5, 4.9, "b"), candidate(5, 5, "c"))
    wide = row(candidate(5, 5, "a"), candidate(1, 1, "b"), candidate(3, 3, "c"))
    _, pairs = build(tmp_path, [good, wide], rule="rank")
    assert keys(pairs) == [("0", "1"), ("0", "1")]
    assert pairs[0]["weight"] / pairs[1]["weight"] == pytest.approx(0.75, rel=1e-5)  # ranks 1.5, 1.5, 0 and 2, 1, 0


def test_several_pairs_a_prompt_have_ids_of_their_own_and_a_mean_weight_of_1(tmp_path):
    some = [row(*(candidate(i, 1, f"{i}") for i in (5, 1, 3, 4)), id=name) for name in ("x", "y")]
    _, pairs = build(tmp_path, some, pairs_per_prompt=3)
    assert keys(pairs)[:3] == [("0", "1"), ("3", "1"), ("0", "2")]
    assert [pair["id"] for pair in pairs] == [f"{n}:{a}-{b}" for n, (a, b) in zip("xxxyyy", keys(pairs), strict=True)]
    assert [pair["weight"] for pair in pairs[:3]] == pytest.approx([4 / 3, 1, 2 / 3], rel=1e-5)


def test_rows_of_the_schema_with_paths_that_lead_to_the_same_files(tmp_path):
    """The closing turn, its audio and all fields go where they belong; training reads the result."""
    for folder in ("in/asked", "said", "out"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("in/asked/q.wav", "in/t.wav", "said/a.wav", "said/b.wav"):
        (tmp_path / name).write_bytes(b"")
    turns = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "the <|audio|>target"}]
    candidates = [candidate(5, 5, "a"), candidate(1, 1, "b") | {"output-units": [4, 5]}]
    asked = row(*candidates, messages=turns, audios=["asked/q.wav", "t.wav"], units_codec="9f", task_type="s2s")
    (tmp_path / "in/c.json").write_text(json.dumps([asked], indent=2))
    options = {"input": str(tmp_path / "in/c.json"), "generated_audio_root": str(tmp_path / "said")}
    for output, more in (("out/best.jsonl", {}), ("out/target.jsonl", {"chosen_source": "sft_target"})):
        build_pairs(PairOptions(output=str(tmp_path / output), **options, **more))
    (best,), (target,) = read_rows(tmp_path / "out/best.jsonl"), read_rows(tmp_path / "out/target.jsonl")
    places = [ref.path.resolve() for ref in (*best.audios, best.target_audio, best.rejected_audio)]
    assert places == [(tmp_path / name).resolve() for name in ("in/asked/q.wav", "said/a.wav", "said/b.wav")]
    assert best.rejected_audio.units == (4, 5) and best.rejected_audio.codec == "9f" and best.target_audio.units is None
    assert [message.role for message in best.messages] == ["user"] and best.target_text == "a"
    assert (
        target.target_text == "the target" and target.target_audio.path.resolve() == (tmp_path / "in/t.wav").resolve()
    )
    assert best.columns["source_dataset"] == "c.json" and best.task_type == "s2s"


def test_defect_11_an_answer_never_takes_the_place_of_a_missing_question(tmp_path):
    """In the released code a missing question file lets the answer's audio become the question."""
    for name in ("a.wav", "b.wav"):
        save_wav(tmp_path / name, tone(), 16000)
    asked = row(candidate(5, 5, "a"), candidate(1, 1, "b"), id="x", audios=["a-question.wav"])
    asked["messages"] = [{"role": "user", "content": "<|audio|>"}]
    _, (pair,) = build(tmp_path, [asked])
    assert pair["audios"] == ["a-question.wav"]
    with pytest.raises(InputError, match="prompt with unusable audio: 1"):
        (tmp_path / "checked").mkdir()
        build_pairs(
            PairOptions(
                input=str(tmp_path / "candidates.jsonl"), output=str(tmp_path / "checked.jsonl"), validate_audio=True
            )
        )


def test_audio_that_cannot_be_used_gives_way_to_the_next(tmp_path):
    for name in ("b.wav", "c.wav", "d.wav"):
        save_wav(tmp_path / name, tone(), 16000)
    (tmp_path / "a.wav").write_bytes(b"no sound")
    four = row(candidate(5, 5, "a"), candidate(4, 4, "b"), candidate(1, 1, "gone"), candidate(2, 2, "c"))
    card, pairs = build(tmp_path, [four], validate_audio=True)
    assert keys(pairs) == [("1", "3")] and pairs[0]["score_gap"] == 4
    assert card["candidates"]["unusable"] == {"with unusable audio": 2}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"rule": "threshold", "chosen_min_score": 1.0, "rejected_max_score": 1.0}, "no answer may be both"),
        ({"chosen_min_score": 1.0}, "--chosen-min-score: only used with --rule threshold"),
        ({"max_auto_bleu": 0.3, "chosen_source": "sft_target"}, "--max-auto-bleu: expected --chosen-source"),
        ({"semantic_weight": 1.0}, "--semantic-weight: only used with --score-mode weighted"),
        (
            {"score_mode": "weighted", "semantic_weight": 0.0, "paralinguistic_weight": 0.0},
            "--semantic-weight, --paralinguistic-weight: expected one above 0",
        ),
        ({"min_score_gap": math.nan}, "--min-score-gap: expected a finite number"),
        ({"top_k": 0}, "--top-k: expected at least 1"),
        ({"seed": -1}, "--seed: expected at least 0"),
        ({"rule": "rank", "chosen_source": "sft_target"}, "--rule rank: expected --chosen-source best_output"),
        ({"rule": "best"}, "Invalid enum value 'best'"),
        ({"target_audio_root": "nowhere"}, "--target-audio-root: no such folder: nowhere"),
        ({"output": "candidates.jsonl"}, "--output: expected another file than the input"),
        ({"input": "nowhere.jsonl"}, "--input: no such file: nowhere.jsonl"),
    ],
)
def test_wrong_options_are_named(tmp_path, monkeypatch, told, said):
    monkeypatch.chdir(tmp_path)
    Path("candidates.jsonl").write_text("")
    with pytest.raises(InputError) as error:
        build_pairs(PairOptions(**{"input": "candidates.jsonl", "output": "pairs.jsonl", **told}))
    assert said in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["candidates.jsonl"]
