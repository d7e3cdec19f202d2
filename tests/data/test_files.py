"""What cannot be read says what it should have been; folders that are put into another."""

import errno
import os
import shutil

import pytest

from elocute.data.files import cache_folder, link_folder, read_json
from elocute.errors import InputError


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path))
    assert cache_folder("units") == tmp_path / "units"
    monkeypatch.delenv("ELOCUTE_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder("units")) == "/home/someone/.cache/elocute/units"


def test_the_object_in_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "a config") == {"ä": [1]}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[1]", "expected a JSON object"), (b"{1", "line 1"), (b"\xff\xfe{}", "utf-8"), (None, "No such file")],
)
def test_anything_else_is_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=f"a.json: not a config: .*{said}") as caught:
        read_json(tmp_path / "a.json", "a config")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("same_disk", [True, False])
def test_a_linked_folder_is_whole_without_the_other(tmp_path, monkeypatch, same_disk):
    """Weights take no room a second time; what is edited in one folder stays as it is in the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    contents = {"model.safetensors": "weights", "config.json": "{}", "deep/er/flow.pt": "flow", "LICENSE": "MIT"}
    for name, content in {**contents, ".cache/lock": "no"}.items():
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(content)
    two.mkdir()
    (two / "model.safetensors").write_text("of before")
    if not same_disk:

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        link_folder(one, two)
    assert (two / "model.safetensors").samefile(one / "model.safetensors") == same_disk
    assert not (two / "config.json").samefile(one / "config.json")
    shutil.rmtree(one)
    assert {str(path.relative_to(two)): path.read_text() for path in two.rglob("*") if path.is_file()} == contents


def test_a_folder_linked_into_itself_stays(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    link_folder(tmp_path, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "weights"
