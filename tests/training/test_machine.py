"""How much memory there is: the machine's, or what a control group leaves of it."""

from pathlib import Path

import pytest

from elocute.training.machine import GIB, Machine, main_memory


def proc(folder: Path, group: str | None) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    if group is not None:
        (folder / "proc/self/cgroup").write_text(f"1:cpu:/other\n0::{group}\n")
    return folder / "proc"


def control(folder: Path, limit: str, used: int, inactive: int = 0, active: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = f"anon 7\ninactive_file {inactive}\nactive_file {active}"
    for name, text in {"max": limit, "current": used, "stat": files}.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_without_a_control_group_it_is_the_machines(tmp_path):
    assert main_memory(proc(tmp_path, None), tmp_path / "none") == 8_000_000 * 1024


def test_the_narrowest_control_group_counts(tmp_path):
    groups, own = tmp_path / "groups", proc(tmp_path, "/jobs/mine")
    control(groups / "jobs/mine", "max", 5)
    assert main_memory(own, groups) == 8_000_000 * 1024
    control(groups / "jobs", "4000000", 3_000_000, 500_000, 200_000)  # cached files make room, those in use lately too
    assert main_memory(own, groups) == 1_700_000
    control(groups / "jobs/mine", "100", 200)
    assert main_memory(own, groups) == 0


def test_where_nothing_says_it_nothing_is_known(tmp_path):
    assert main_memory(tmp_path, tmp_path) is None


def test_processes_of_a_machine_share_it(monkeypatch):
    one = Machine.here()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    four = Machine.here()
    assert (one.processes, four.processes) == (1, 8)
    if not four.gpu:
        assert four.bytes == pytest.approx(one.bytes / 4, rel=0.3) and four.bytes < one.bytes


def test_it_is_said_in_words():
    assert str(Machine(3 * GIB // 2)) == "1.5 GiB of main memory"
    assert str(Machine(80 * GIB, gpu=True)) == "80 GiB of the GPU"
