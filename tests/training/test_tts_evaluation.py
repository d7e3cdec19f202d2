"""A TTS run is evaluated before and after, by who did not decide it, and its report plays every combination."""

import json
from pathlib import Path

import pytest

from elocute.cli import app
from elocute.data.digest import digest_folder
from elocute.errors import InputError
from elocute.recipe import Recipe, load_recipe
from elocute.report.page import write_report
from elocute.training.run import run
from tests.evaluation.reading_files import listeners, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


def overrides(files: Path, folder: Path, *more: str) -> list[str]:
    given = [f"model={files / 'model'}", f"run_dir={folder}", f"data.train={files / 'rows.jsonl'}"]
    given += [f"data.eval={files / 'rows.jsonl'}", "evaluation.rows=3", "lora=null", "optim.lr=0.02", "steps=1"]
    given += ["rewards=[{kind: guard, weight: 1}]", "rollout.prompts_per_step=1", "rollout.max_new_tokens=60"]
    given += [f"evaluation.labels={json.dumps(listeners(files))}", "optim.schedule=constant", "optim.warmup_steps=0"]
    given += ["evaluation.ear.kind=pocketsphinx", "evaluation.ear.vocabulary=starter/answers.txt"]
    return [*given, *more]


def recipe(files: Path, folder: Path, *more: str) -> Recipe:
    return load_recipe("recipes/starter/rlaif_spa.yaml", overrides(files, folder, *more))


def stages(recipe: Recipe, resume: bool = False) -> list[str]:
    seen: list[str] = []
    assert run(recipe, resume=resume, progress=lambda stage, *_: seen.append(stage))
    return list(dict.fromkeys(seen))


def test_a_run_is_evaluated_before_and_after_and_goes_on(files, tmp_path):
    folder = tmp_path / "run"
    moments = [
        [f"{stage} {moment}" for stage in ("speak", "measure", "hear", "emotion", "prosody")]
        for moment in ("before", "after")
    ]
    assert stages(recipe(files, folder)) == [*moments[0], "train", *moments[1]]
    first = (folder / "eval.json").read_bytes()
    assert stages(recipe(files, folder), resume=True) == []  # nothing is left to do
    assert (folder / "eval.json").read_bytes() == first

    moved = [entry | ({"device": "cpu"} if entry["kind"] == "emotion" else {}) for entry in listeners(files)]
    longer = recipe(files, folder, "steps=3", f"evaluation.labels={json.dumps(moved)}")  # where it runs may change
    assert stages(longer, resume=True) == ["train", *moments[1]]
    values = json.loads((folder / "eval.json").read_text())
    assert values["step"] == {"before": 0, "after": 3} and values["before"] == json.loads(first)["before"]
    models = {"before": files / "model", "after": folder / "model"}
    assert values["model_digest"] == {moment: digest_folder(path) for moment, path in models.items()}
    assert values["before"]["wer"]["n"] == 3 and values["max_new_tokens"] == 60
    assert set(values["paired"]) >= {"wer", "broken_audio", "label_alignment", "label_alignment/emotion"}

    assert stages(recipe(files, tmp_path / "whole", "steps=3")) == [*moments[0], "train", *moments[1]]
    whole = json.loads((tmp_path / "whole/eval.json").read_text())
    assert whole == values

    for moment in ("before", "after"):
        assert len((folder / f"samples/combinations-{moment}.jsonl").read_text().splitlines()) == 9
    page = write_report(folder).read_text()
    assert "The same sentence in all 9 combinations" in page and "Labels heard" in page and "p = " in page
    assert page.count('<svg class="voice') == len(list(folder.glob("samples/combinations-*/*.wav"))) > 0


def test_a_dry_run_checks_rows_and_listeners(files, tmp_path, capsys):
    words = ["train", "recipes/starter/rlaif_spa.yaml", *overrides(files, tmp_path / "run"), "--dry-run"]
    app(words, standalone_mode=False)
    assert "data.train has 5 rows, data.eval has 3 rows" in capsys.readouterr().out
    row = {"messages": [{"role": "user", "content": "one"}], "labels": {"speed": "Now"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="rows.jsonl:1: labels.speed: no such label: 'Now'"):
        app([*words, f"data.eval={tmp_path / 'rows.jsonl'}"], standalone_mode=False)


@pytest.mark.parametrize("number", [0, 1])
def test_who_decides_a_run_does_not_hear_its_labels(files, tmp_path, number):
    entry = listeners(files)[number] | {"name": "taught"}
    bad = recipe(files, tmp_path / "run", f"rewards=[{json.dumps(entry)}]")
    with pytest.raises(InputError, match=f"^evaluation.labels.{number}: 'taught' is the same and decides the run"):
        run(bad)
    assert not (tmp_path / "run").exists()


def test_labels_are_heard_of_what_is_read_only(files, tmp_path, tiny_lm):
    tiny_lm.save(tmp_path / "asks")
    said = "^evaluation.labels: expected only for a model that reads data.eval aloud$"
    for more in (f"model={tmp_path / 'asks'}", "data.eval=null"):
        with pytest.raises(InputError, match=said):
            run(recipe(files, tmp_path / "run", more))
