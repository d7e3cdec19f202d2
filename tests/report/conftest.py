import pytest
from fake_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of 40 steps; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "finished", steps=40)


@pytest.fixture
def small_run(tmp_path):
    """A run that a test may change as it likes."""
    return write_run(tmp_path / "run", steps=10, answers=6, sounds=2)
