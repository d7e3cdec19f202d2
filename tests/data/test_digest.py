import hashlib
import os
import shutil

import pytest

from elocute.data.digest import digest_file, digest_folder
from elocute.errors import InputError


def test_a_file_gives_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_folder_gives_its_names_and_contents(tmp_path):
    folder = tmp_path / "one"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x").write_bytes(b"1")
    (folder / "y").write_bytes(b"2")
    digest = digest_folder(folder)
    shutil.copytree(folder, tmp_path / "two")
    os.utime(tmp_path / "two" / "y", (0, 0))
    assert digest_folder(tmp_path / "two") == digest
    (tmp_path / "two" / "y").rename(tmp_path / "two" / "z")
    assert digest_folder(tmp_path / "two") != digest
    (folder / "y").write_bytes(b"3")
    assert digest_folder(folder) != digest


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        digest_file(tmp_path / "a")
    with pytest.raises(InputError, match="expected a folder"):
        digest_folder(tmp_path / "a")
