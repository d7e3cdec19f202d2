"""The official layouts, read from tiny trees that the tests write; accuracies against examples done by hand."""

import csv
import os
import random
from pathlib import Path

import pytest

from elocute.errors import InputError
from elocute.evaluation.pair_accuracy import accuracies, averaged, compare, table
from elocute.evaluation.statistics import bootstrap_mean, wilson
from elocute.evaluation.suites import BANDS, SALMON_PARTS, SUITES, read_scores, write_scores
from elocute.evaluation.write_suites import write_gold_suite, write_salmon_part, write_storycloze

# id, voice, frequency of the word, is the word likelier?
WORDS = [
    (1, "A", 0, 1.0), (1, "B", 0, 0.0),  # out of vocabulary: ½
    (2, "A", 4, 1.0), (2, "B", 4, 1.0),  # 1-5: 1
    (3, "A", 5, 0.5), (3, "B", 5, 0.0),  # 6-20: ¼
    (4, "A", 5, 1.0), (4, "B", 5, 0.0),  # 6-20: ½
    (5, "A", 250, 0.0), (5, "B", 250, 0.0),  # >100: 0
    (6, "A", "", 1.0), (6, "B", "", 1.0),  # the table does not say: 1
]  # fmt: skip


@pytest.fixture
def sound(tmp_path) -> Path:
    """Any file: reading a layout does not listen."""
    path = tmp_path / "any.wav"
    path.write_bytes(b"sound")
    return path


@pytest.fixture
def lexical(tmp_path, sound) -> Path:
    recordings = []
    for number, voice, frequency, _ in WORDS:
        for right in (1, 0):
            row = {"id": number, "voice": voice, "frequency": frequency, "word": "w", "phones": "w", "length": 1}
            recordings.append((sound, row | {"correct": right}))
    write_gold_suite(tmp_path / "zr/lexical/dev", recordings)
    return tmp_path / "zr"


def scores_of(folder: Path, columns: tuple[str, ...], wanted: dict) -> dict[Path, float]:
    """Scores that give each pair what `wanted` says, straight from the table."""
    with open(folder / "gold.csv") as file:
        return {
            folder / f"{row['filename']}.wav": -10.0
            if row["correct"] == "0"
            else -10.0 + {1.0: 0.25, 0.5: 0.0, 0.0: -0.25}[wanted[tuple(row[name] for name in columns)]]
            for row in csv.DictReader(file)
        }


def lexical_scores(data: Path) -> dict[Path, float]:
    wanted = {(str(number), voice): value for number, voice, _, value in WORDS}
    return scores_of(data / "lexical/dev", ("id", "voice"), wanted)


def test_ties_count_half():
    assert [compare(*pair) for pair in [(2, 1), (1, 1), (1, 2)]] == [1, 0.5, 0]


def test_swuggy_by_hand(lexical):
    [part] = SUITES["swuggy"].read(lexical)
    assert part.name == "dev" and len(part.files) == 24 and len(part.pairs) == 12
    found = accuracies(SUITES["swuggy"], part, lexical_scores(lexical))
    assert list(found) == ["dev_all", "dev_in_vocab"]
    assert found["dev_all"].value == pytest.approx((0.5 + 1 + 0.25 + 0.5 + 0 + 1) / 6) and found["dev_all"].n == 6
    # bands 1-5: 1 (one id), 6-20: (¼ + ½) / 2 (two), >100: 0 (one), weighted by their ids; no oov, no unknown
    weighted = (1 * 1 + 2 * 0.375 + 1 * 0) / 4
    assert found["dev_in_vocab"].value == pytest.approx(weighted) and found["dev_in_vocab"].n == 4
    assert found["dev_in_vocab"].ci95 == bootstrap_mean([1, 0.25, 0.5, 0], 0)[1:]
    bands = table(SUITES["swuggy"], part, lexical_scores(lexical))
    assert {band: (estimate.value, estimate.n) for band, estimate in bands.items()} == {
        "oov": (0.5, 1), "1-5": (1.0, 1), "6-20": (0.375, 2), ">100": (0.0, 1),
    }  # fmt: skip
    assert list(bands) == [band for band in BANDS if band != "21-100"]
    assert bands["1-5"].ci95 == wilson(1, 1)  # both voices right: a plain right or wrong


def test_in_vocabulary_is_the_count_weighted_mean_of_the_bands(lexical):
    [part] = SUITES["swuggy"].read(lexical)
    scores = {file: random.Random(index).choice([1.0, 2.0, 3.0]) for index, file in enumerate(part.files)}
    bands = table(SUITES["swuggy"], part, scores)
    known = [estimate for band, estimate in bands.items() if band != "oov"]
    weighted = sum(estimate.value * estimate.n for estimate in known) / sum(estimate.n for estimate in known)
    assert accuracies(SUITES["swuggy"], part, scores)["dev_in_vocab"].value == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("frequency", "band"),
    [(0, "oov"), (1, "1-5"), (4, "1-5"), (5, "6-20"), (19, "6-20"), (20, "21-100"), (99, "21-100"), (100, ">100")],
)
def test_band_edges_are_the_official_evaluators(frequency, band, tmp_path, sound):
    row = {"id": 1, "voice": "A", "frequency": frequency}
    write_gold_suite(tmp_path / "dev", [(sound, row | {"correct": right}) for right in (1, 0)])
    [part] = SUITES["swuggy"].read(tmp_path / "dev")
    assert part.pairs[0].label == band


def test_sblimp_by_hand(tmp_path, sound):
    """Ids start anew in every subtype: type, subtype and id together name a pair."""
    wanted = {
        ("agreement", "noun", "1", "A"): 1.0, ("agreement", "noun", "1", "B"): 0.0,  # ½
        ("agreement", "verb", "1", "A"): 1.0, ("agreement", "verb", "1", "B"): 1.0,  # 1
        ("binding", "reflexive", "1", "A"): 0.0, ("binding", "reflexive", "1", "B"): 0.5,  # ¼
    }  # fmt: skip
    columns = ("type", "subtype", "id", "voice")
    recordings = [
        (sound, {**dict(zip(columns, key, strict=True)), "transcription": "a b", "correct": right})
        for right in (0, 1)
        for key in wanted
    ]
    write_gold_suite(tmp_path / "syntactic/dev", recordings)
    [part] = SUITES["sblimp"].read(tmp_path / "syntactic")  # its folder will do as well as the dataset's
    scores = scores_of(tmp_path / "syntactic/dev", columns, wanted)
    found = accuracies(SUITES["sblimp"], part, scores)
    assert found["dev_all"].value == pytest.approx((0.5 + 1 + 0.25) / 3) and found["dev_all"].n == 3
    types = table(SUITES["sblimp"], part, scores)
    assert {name: estimate.value for name, estimate in types.items()} == {"agreement": 0.75, "binding": 0.25}


def test_both_splits_are_read_and_one_without_gold_is_scored_only(lexical, sound):
    test = lexical / "lexical/test"
    test.mkdir()
    (test / "xKtnLJYiWGt.wav").write_bytes(b"sound")
    (test / "._xKtnLJYiWGt.wav").write_bytes(b"of an archive made on a Mac")
    dev, hidden = SUITES["swuggy"].read(lexical)
    assert (dev.name, hidden.name, hidden.pairs) == ("dev", "test", None)
    assert hidden.files == (test / "xKtnLJYiWGt.wav",)


def stories(tmp_path, sound, names=("ab-1", "ab-2", "cd-3")) -> Path:
    for benchmark in ("sStoryCloze", "tStoryCloze"):
        write_storycloze(tmp_path / "cloze" / benchmark, {name: (sound, sound) for name in names})
    return tmp_path / "cloze"


def test_storycloze_by_hand(tmp_path, sound):
    data = stories(tmp_path, sound)
    parts = SUITES["storycloze"].read(data)
    assert [part.name for part in parts] == ["sStoryCloze", "tStoryCloze"]
    assert {file.name for file in parts[0].files} >= {"0_ab-1_correct.wav", "1_ab-1_incorrect.wav"}
    scores = {file: float("_correct" in file.name) for part in parts for file in part.files}
    scores[data / "tStoryCloze/4_cd-3_correct.wav"] = -1.0
    s, t = (accuracies(SUITES["storycloze"], part, scores)[part.name] for part in parts)
    assert (s.value, s.n, s.ci95) == (1.0, 3, wilson(3, 3))
    assert (t.value, t.n, t.ci95) == (2 / 3, 3, wilson(2, 3))
    assert SUITES["storycloze"].read(data / "tStoryCloze") == [parts[1]]  # one benchmark by itself


def test_salmon_reads_the_parts_that_are_there(tmp_path, sound):
    for name in ("speaker_consistency", "bg_alignment"):
        write_salmon_part(tmp_path / "salmon" / name, [(sound, sound)] * 12)
    parts = SUITES["salmon"].read(tmp_path / "salmon")
    assert [part.name for part in parts] == ["bg_alignment", "speaker_consistency"]
    assert set(SALMON_PARTS) > {part.name for part in parts}
    pairs = {(pair.positive.name, pair.negative.name) for pair in parts[0].pairs}
    assert pairs == {(f"sample_{number}_0.wav", f"sample_{number}_1.wav") for number in range(12)}


@pytest.mark.parametrize("suite", ["swuggy", "storycloze", "salmon"])
def test_defect_align_4_directory_order(suite, lexical, tmp_path, sound, monkeypatch):
    """Whatever order a directory lists its files in, the right one of each pair stays the right one."""
    data = {"swuggy": lexical, "storycloze": tmp_path / "cloze", "salmon": tmp_path / "salmon"}[suite]
    stories(tmp_path, sound)
    write_salmon_part(tmp_path / "salmon/speaker_consistency", [(sound, sound)] * 12)
    read = SUITES[suite].read(data)
    glob = Path.glob
    listings = set()

    for seed in range(5):

        def shuffled(self, pattern, seed=seed):
            found = list(glob(self, pattern))
            random.Random(seed).shuffle(found)
            listings.add(tuple(found))
            return iter(found)

        monkeypatch.setattr(Path, "glob", shuffled)
        assert SUITES[suite].read(data) == read
    assert len(listings) > 3  # the order was in fact another one
    right = {"swuggy": None, "storycloze": "_correct", "salmon": "_0"}[suite]
    if right:
        names = [(pair.positive.stem.endswith(right), pair.negative.stem.endswith(right)) for pair in read[0].pairs]
        assert set(names) == {(True, False)}
    else:
        with open(lexical / "lexical/dev/gold.csv") as file:
            correct = {row["filename"]: row["correct"] for row in csv.DictReader(file)}
        assert all(correct[pair.positive.stem] == "1" and correct[pair.negative.stem] == "0" for pair in read[0].pairs)


def test_a_gold_table_in_any_order_gives_the_same(lexical):
    [part] = SUITES["swuggy"].read(lexical)
    gold = lexical / "lexical/dev/gold.csv"
    header, *rows = gold.read_text().splitlines()
    random.Random(3).shuffle(rows)
    gold.write_text("\n".join([header, *rows]) + "\n")
    [again] = SUITES["swuggy"].read(lexical)
    assert set(again.pairs) == set(part.pairs) and again.pairs != part.pairs
    scores = lexical_scores(lexical)
    for metric, estimate in accuracies(SUITES["swuggy"], part, scores).items():
        other = accuracies(SUITES["swuggy"], again, scores)[metric]
        assert (estimate.value, estimate.n) == (pytest.approx(other.value), other.n)


def test_score_files_are_the_challenges_and_read_back_to_the_same_accuracy(lexical, tmp_path):
    [part] = SUITES["swuggy"].read(lexical)
    scores = {file: score / 3 for file, score in lexical_scores(lexical).items()}
    write_scores(tmp_path / "lexical/dev.txt", scores)
    lines = (tmp_path / "lexical/dev.txt").read_text().splitlines()
    assert {line.split(" ")[0] for line in lines} == {file.stem for file in part.files} and len(lines) == 24
    again = read_scores(tmp_path / "lexical/dev.txt", lexical / "lexical/dev")
    assert again == scores  # every bit
    assert accuracies(SUITES["swuggy"], part, again) == accuracies(SUITES["swuggy"], part, scores)
    for line in ("name", "name one", "name 1 2", "name nan"):
        (tmp_path / "bad.txt").write_text(f"good -1.5\n{line}\n")
        with pytest.raises(InputError, match="bad.txt:2: expected"):
            read_scores(tmp_path / "bad.txt", lexical)


def test_several_recordings_of_a_voice_are_paired_in_the_tables_order(tmp_path, sound):
    words = {"a": 1, "b": 1, "x": 0, "y": 0}
    rows = [{"id": 1, "voice": "A", "frequency": 1, "word": word, "correct": right} for word, right in words.items()]
    write_gold_suite(tmp_path / "dev", [(sound, row) for row in rows])
    with open(tmp_path / "dev/gold.csv") as file:
        word = {row["filename"]: row["word"] for row in csv.DictReader(file)}
    [part] = SUITES["swuggy"].read(tmp_path / "dev")
    assert [(word[p.positive.stem], word[p.negative.stem]) for p in part.pairs] == [("a", "x"), ("b", "y")]
    assert len(averaged(part.pairs, {file: 0.0 for file in part.files})) == 1


def edit(gold: Path, change) -> None:
    gold.write_text(change(gold.read_text()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("frequency", "freq", 1), "gold.csv: expected a column 'frequency', found filename, id"),
        (lambda t: t.splitlines()[0] + "\n", "gold.csv: expected rows, the table has none"),
        (lambda t: "", "gold.csv: expected a column 'filename', found none"),
        (lambda t: t.replace(",1\n", ",yes\n", 1), "gold.csv:2: correct: expected 0 or 1, got 'yes'"),
        (lambda t: t.replace(",A,", ",,", 1), "gold.csv:2: voice: expected a value, got none"),
        (lambda t: t.replace(",A,0,", ",A,rare,"), "gold.csv:2: frequency: expected a number, got 'rare'"),
        (lambda t: "\n".join(t.splitlines()[:2]) + "\n", "_sound not named_"),
        (lambda t: t + t.splitlines()[1].replace(t.splitlines()[1].split(",")[0], "gone") + "\n", "gone.wav: named in"),
    ],
)  # fmt: skip
def test_a_bad_gold_table_is_one_line(lexical, change, said):
    edit(lexical / "lexical/dev/gold.csv", change)
    said = "not named in gold.csv (23 of 24 are not)" if said == "_sound not named_" else said
    with pytest.raises(InputError) as caught:
        SUITES["swuggy"].read(lexical)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_voice_without_its_non_word_is_an_error(tmp_path, sound):
    rows = [
        {"id": 7, "voice": "A", "frequency": 1, "correct": 1},
        {"id": 7, "voice": "B", "frequency": 1, "correct": 0},
    ]
    write_gold_suite(tmp_path / "dev", [(sound, row) for row in rows])
    with pytest.raises(InputError, match="gold.csv:2: id, voice 7 A: expected as many rows with correct 1 as with 0"):
        SUITES["swuggy"].read(tmp_path / "dev")


def test_what_a_layout_lacks_is_said(tmp_path, sound):
    empty = tmp_path / "empty"
    empty.mkdir()
    for suite, said in {
        "swuggy": "expected lexical/dev/gold.csv in it",
        "sblimp": "expected syntactic/dev/gold.csv in it",
        "storycloze": "expected N_STORY_correct.wav",
        "salmon": "expected one or more of SALMon's parts",
    }.items():
        for folder in (empty, tmp_path / "nowhere"):
            with pytest.raises(InputError, match=f"{folder.name}: {said}"):
                SUITES[suite].read(folder)
    data = stories(tmp_path, sound)
    os.rename(data / "sStoryCloze/1_ab-1_incorrect.wav", data / "sStoryCloze/1_ab-1_wrong.wav")
    with pytest.raises(InputError, match="1_ab-1_wrong.wav: expected a name like"):
        SUITES["storycloze"].read(data)
    os.remove(data / "sStoryCloze/1_ab-1_wrong.wav")
    with pytest.raises(InputError, match="0_ab-1_correct.wav: its other side is missing"):
        SUITES["storycloze"].read(data)
    (data / "sStoryCloze/8_ab-1_correct.wav").write_bytes(b"again")
    with pytest.raises(InputError, match="8_ab-1_correct.wav: 0_ab-1_correct.wav is already this side of ab-1"):
        SUITES["storycloze"].read(data)
