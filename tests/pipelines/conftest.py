"""Folders by name, below one of the test's own."""

import pytest


@pytest.fixture
def folders(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make
