"""What cannot be read says what it should have been."""

import pytest

from elocute.data.files import read_json
from elocute.errors import InputError


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
