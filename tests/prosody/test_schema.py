"""The prosody schema: what ships, what a user may write, and what is said about a mistake."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.prosody.schema import SHIPPED, load_schema

SPEED = load_schema().dimensions["speed"]
SMALL = """
prompt: "[{labels}] {text}"
dimensions:
  speed:
    description: How fast.
    ordered: true
    labels: {Slow: slowly, Medium: , Fast: quickly}
    measure: syllables_per_second
    bounds: [3, 5]
  mood:
    description: What mood.
    labels: {Calm: no fuss, Wild: all fuss}
    rules: {Wild: '!$'}
"""


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return make


@pytest.mark.parametrize(("name", "sizes"), [("paper", [20, 5, 3, 6]), ("rlaif_spa", [20, 10, 5, 6])])
def test_the_published_vocabularies_ship(name, sizes):
    schema = load_schema(name)
    assert list(schema.dimensions) == ["structure", "emotion", "speed", "tone"]
    assert [len(one.labels) for one in schema.dimensions.values()] == sizes
    assert [one.ordered for one in schema.dimensions.values()] == [False, False, True, False]
    assert all(one.description and all(one.labels.values()) for one in schema.dimensions.values())


def test_the_papers_vocabulary_is_what_there_is_without_a_choice():
    schema = load_schema()
    assert schema == load_schema("paper")
    assert list(schema.dimensions["emotion"].labels) == ["Neutral", "Happy", "Sad", "Angry", "Surprise"]
    assert list(schema.dimensions["speed"].labels) == ["Slow", "Medium", "Fast"]
    released = load_schema("rlaif_spa").dimensions
    assert schema.dimensions["structure"] == released["structure"] and schema.dimensions["tone"] == released["tone"]


def test_one_edit_of_one_file_adds_a_label_everywhere(write):
    before = SHIPPED["paper"].read_text()
    after = before.replace("      Sad: ", "      Bored: nothing is of interest\n      Sad: ")
    schema = load_schema(write(after))
    schema.check({"emotion": "Bored"})
    assert schema.prompt("Well.", {"emotion": "Bored"}) == "(emotion: Bored) Well."
    assert "- Bored: nothing is of interest" in schema.description()
    assert "Bored" in schema.json_schema()["properties"]["emotion"]["enum"]
    with pytest.raises(InputError, match="'Bored'"):
        load_schema().check({"emotion": "Bored"})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"emotion": "happy"}, "labels.emotion: no such label: 'happy'; nearest: Happy, "),
        ({"emotion": "Suprised"}, "labels.emotion: no such label: 'Suprised'; nearest: Surprise, "),
        ({"emotoin": "Happy"}, "labels.emotoin: no such dimension; nearest: emotion, "),
        ({"speed": 3}, "labels.speed: expected a label such as Slow, got 3"),
        ({"speed": None}, "labels.speed: expected a label such as Slow, got None"),
        (["Happy"], "labels: expected an object of dimensions and their labels, got ['Happy']"),
    ],
)
def test_an_unknown_label_is_an_error_that_names_the_nearest(labels, said):
    with pytest.raises(InputError, match="^" + re.escape(said)):
        load_schema().check(labels)


def test_all_mistakes_of_a_row_are_said_at_once():
    with pytest.raises(InputError) as caught:
        load_schema().check({"emotion": "Hapy", "speed": "Medium", "tone": "Deklarative"})
    assert str(caught.value).count("no such label") == 2 and "\n" not in str(caught.value)


def test_the_prompt_has_the_labels_in_the_schemas_order(write):
    schema = load_schema(write(SMALL))
    assert schema.prompt("Go!", {"mood": "Wild", "speed": "Fast"}) == "[speed: Fast, mood: Wild] Go!"
    assert schema.prompt("{labels} {text}", {"mood": "Calm"}) == "[mood: Calm] {labels} {text}"
    assert schema.prompt("Go!", {}) == "Go!"
    with pytest.raises(InputError, match="'Wlid'; nearest: Wild"):
        schema.prompt("Go!", {"mood": "Wlid"})


def test_the_digest_is_of_what_is_said_and_not_of_the_file(write):
    digest = load_schema(write(SMALL)).digest
    assert load_schema(write("# a comment\n" + SMALL.replace("[3, 5]", "[3.0, 5.0]"))).digest == digest
    assert load_schema(write(SMALL.replace("[3, 5]", "[3, 6]"))).digest != digest
    assert load_schema(write(SMALL.replace("no fuss", "little fuss"))).digest != digest


def test_some_of_the_dimensions(write):
    only = load_schema(write(SMALL)).only(["mood"])
    assert only.description() == "mood: What mood.\n- Calm: no fuss\n- Wild: all fuss"
    assert only.json_schema() == {
        "type": "object",
        "properties": {"mood": {"type": "string", "enum": ["Calm", "Wild"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }


@given(st.floats(-10, 20), st.lists(st.floats(-5, 15), min_size=2, max_size=2, unique=True).map(sorted))
def test_a_measured_value_has_the_label_between_its_bounds(value, bounds):
    naive = ["Slow" if value < low else "Medium" if value < high else "Fast" for low, high in (bounds, (3.3, 5.9))]
    free = SPEED.model_copy(update={"bounds": ()})
    assert [free.label_of(value, bounds), SPEED.label_of(value, [-math.inf] * 2)] == naive


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "Calm: no fuss",
            "Calm: no fuss, calm: 2",
            "dimensions.mood.labels: two labels differ in upper and lower case",
        ),
        (
            "Calm: no fuss",
            "No: fuss",
            "dimensions.mood.labels: expected words with single spaces (quote Yes, No and numbers), got False",
        ),
        ("Calm: no fuss", "Calm: no fuss, Calm: again", ":12: not YAML: 'Calm' comes twice"),
        ("Calm: no fuss, ", "", "dimensions.mood.labels: dictionary should have at least 2 items"),
        ("  mood:", "  My Mood:", "dimensions.My Mood.name: string should match pattern"),
        ("{labels}", "{label}", "prompt: expected {labels} and {text} once each"),
        ("[3, 5]", "[3]", "dimensions.speed: bounds: expected 2 rising numbers, one between two labels"),
        ("[3, 5]", "[5, 3]", "dimensions.speed: bounds: expected 2 rising numbers"),
        ("[3, 5]", "[0, 5]", "dimensions.speed: bounds: expected positive numbers of syllables_per_second, got 0"),
        ("[3, 5]", "[3, .nan]", "dimensions.speed.bounds.1: input should be a finite number"),
        ("    ordered: true\n", "", "dimensions.speed: measure: only an ordered dimension can be measured"),
        ("    measure: syllables_per_second\n", "", "dimensions.speed: bounds: of what? set measure"),
        ("syllables_per_second", "words", "dimensions.speed.measure: input should be 'phones_per_second'"),
        ("Wild: '!$'", "Wlid: '!$'", "dimensions.mood: rules: 'Wlid' is no label; nearest: Wild"),
        ("Wild: '!$'", "Wild: '('", "dimensions.mood: rules: Wild: not a regular expression"),
        ("    description: What mood.", "    descripton: What mood.", "dimensions.mood.descripton: unknown key"),
        ("dimensions:", "dimension:", "dimensions: field required"),
        ("prompt:", "prompt: {", ":"),
    ],
)
def test_a_mistake_in_the_file_is_a_line_that_names_its_place(write, old, new, said):
    assert old in SMALL
    path = write(SMALL.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_schema(path)
    assert any(line.startswith(f"{path}") and said in line for line in str(caught.value).splitlines()), caught.value


@pytest.mark.parametrize("text", ["", "- a", "3"])
def test_a_file_that_is_no_schema(write, text):
    with pytest.raises(InputError, match=r"mine.yaml: expected keys and values, got"):
        load_schema(write(text))


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match="papre: cannot read the prosody schema: .*; paper and rlaif_spa ship"):
        load_schema("papre")


def test_the_files_are_installed_with_the_package():
    import tomllib
    from pathlib import Path

    tool = tomllib.loads(Path("pyproject.toml").read_text())["tool"]
    assert tool["setuptools"]["package-data"] == {"elocute.prosody": ["*.yaml"]}
    assert {path.name for path in SHIPPED.values()} == {path.name for path in SHIPPED["paper"].parent.glob("*.yaml")}
