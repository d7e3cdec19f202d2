"""Imports go down, never up and never in a circle: what keeps the house readable."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import elocute

SOURCE = Path(elocute.__file__).parent

# Top down. A part may import from lower floors and from itself, not from its neighbours on the same floor.
FLOORS = [
    {"cli"},
    {"chat"},
    {"pipelines", "report"},
    {"training"},
    {"evaluation"},
    {"rollout"},
    {"models"},
    {"speech", "rewards"},
    {"prosody"},
    {"data", "objectives", "recipe"},
    {"errors", "progress"},
]
FLOOR_OF = {part: -i for i, parts in enumerate(FLOORS) for part in parts}


def module_name(path: Path, source: Path) -> str:
    names = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported_modules(path: Path, source: Path) -> Iterator[str]:
    """Modules of the house that a file imports anywhere, also inside functions and for type checks only."""
    package = path.relative_to(source.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == source.name and "." in name)


def part_of(module: str) -> str:
    return module.split(".")[1]


def breaches(source: Path) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        importer = module_name(path, source)
        for imported in imported_modules(path, source):
            parts = [part_of(importer) if "." in importer else "cli", part_of(imported)]
            if unknown := [part for part in parts if part not in FLOOR_OF]:
                found.append(f"{path.name}: {unknown[0]} stands on no floor of this test")
            elif parts[0] != parts[1] and FLOOR_OF[parts[1]] >= FLOOR_OF[parts[0]]:
                found.append(f"{importer} imports {imported}")
    return found


def module_graph(source: Path) -> dict[str, set[str]]:
    modules = {module_name(path, source): path for path in source.rglob("*.py")}
    graph = {}
    for module, path in modules.items():
        wanted = {name if name in modules else name.rpartition(".")[0] for name in imported_modules(path, source)}
        graph[module] = (wanted & modules.keys()) - {module}
    return graph


def test_imports_go_to_lower_floors_only():
    assert breaches(SOURCE) == []


def test_no_imports_go_in_a_circle():
    TopologicalSorter(module_graph(SOURCE)).prepare()


@pytest.mark.parametrize(
    "line",
    [
        "from elocute.models import x",
        "import elocute.speech.codec",
        "from elocute import cli",
        "from ..training import loop",
        "def f():\n    from elocute.rollout.seeds import s",
        "from elocute.attic import box",
    ],
)
def test_a_breach_is_seen(tmp_path, line):
    (tmp_path / "elocute" / "rewards").mkdir(parents=True)
    file = tmp_path / "elocute" / "rewards" / "rule.py"
    file.write_text("from elocute.data.types import Answer\nfrom .outcome import Scored\nimport numpy\n")
    assert breaches(file.parents[1]) == []
    file.write_text(line)
    assert len(breaches(file.parents[1])) == 1


def test_a_circle_is_seen(tmp_path):
    (tmp_path / "elocute" / "data").mkdir(parents=True)
    (tmp_path / "elocute" / "data" / "a.py").write_text("from elocute.data.b import f")
    (tmp_path / "elocute" / "data" / "b.py").write_text("from elocute.data import a")
    with pytest.raises(CycleError):
        TopologicalSorter(module_graph(tmp_path / "elocute")).prepare()


def test_defect_rlaif_8_no_gpu_is_named_in_the_source():
    """Which one a process has is for the launcher to say, and a recipe's `device`."""
    named = r"cuda:\d|device_ids? *=|CUDA_VISIBLE_DEVICES|set_device\("
    assert [path.name for path in SOURCE.rglob("*.py") if re.search(named, path.read_text())] == []
