"""What the pages say is run, in order, page by page, in a folder that looks like the repository's root.

```python file=reward.py    the block becomes this file
```python run               the block is run; `run exit=2` where it must fail so
```text output              each of its lines is in what the last block printed
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from elocute.cli import app
from tests.contracts import judges
from tests.rewards import tiny_models

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```(\w+) (file=|run|output)(\S*)(?: exit=(\d+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECRETS = ("WAVALIGN_REWARD_", "OPENAI_")


@dataclass(frozen=True)
class Block:
    """One block of a page that a test acts on."""

    language: str
    action: str
    name: str
    status: int
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    return [
        Block(m[1], m[2], m[3], int(m[4] or 0), m[5], page[: m.start()].count("\n") + 1) for m in _BLOCK.finditer(page)
    ]


@pytest.fixture(scope="module")
def root(tiny_lm, tmp_path_factory):
    """A copy of the repository's root as far as the pages use it; its starter model is the tiny one."""
    root = tmp_path_factory.mktemp("root")
    (root / "starter").mkdir()
    for path in (ROOT / "starter").iterdir():
        if path.name != "model":
            (root / "starter" / path.name).symlink_to(path)
    (root / "recipes").symlink_to(ROOT / "recipes")
    tiny_lm.save(root / "starter/model")
    tiny_models.bert(root / "models/encoder")
    tiny_models.classifier(root / "models/classifier")
    judges.emotion(root / "models/wav2vec2-base-superb-er")
    return root


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name)
def test_what_the_page_says_runs(page, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    printed = ""
    for block in blocks(page.read_text()):
        where = f"{page.name}:{block.line}"
        if block.action == "file=":
            (root / block.name).write_text(block.text)
        elif block.action == "run" and block.language == "python":
            exec(compile(block.text, where, "exec"), {"__name__": "__main__"})  # here: starting Python takes seconds
            printed = capsys.readouterr().out
        elif block.action == "run":
            done = run(block.text, root)
            printed = done.stdout + done.stderr
            assert done.returncode == block.status, f"{where}\n{printed}"
        else:
            lines = printed.splitlines()
            assert [line for line in block.text.splitlines() if line not in lines] == [], f"{where}\n{printed}"


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_SECRETS)}
    environment |= {"PATH": path, "ELOCUTE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = ["bash", "-e", "-o", "pipefail", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_every_marked_block_is_understood():
    """A misspelt mark must not quietly turn a test into prose."""
    for page in PAGES:
        marked = re.findall(r"^```\w+ .*$", page.read_text(), re.MULTILINE)
        assert len(marked) == len(blocks(page.read_text())), page.name


def test_the_recipe_page_is_what_the_schema_says():
    done = subprocess.run(
        [sys.executable, "-c", "import make_recipe_page as m; p = m.PAGE.read_text(); assert m.renewed(p) == p"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, "docs/recipe.md is stale: python docs/make_recipe_page.py\n" + done.stderr


def test_tests_that_pages_name_are_there():
    for page in PAGES:
        for name, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
            assert f"def {test}" in (ROOT / name).read_text() if test else (ROOT / name).is_file(), f"{name}::{test}"


@pytest.mark.parametrize("number", range(1, 9))
def test_every_defect_of_rlaif_spas_code_has_its_test_and_a_page_that_names_it(number):
    named = re.findall(rf"`tests/[\w/]+\.py::test_defect_rlaif_{number}_\w+`", "".join(p.read_text() for p in PAGES))
    there = re.findall(
        rf"^def (test_defect_rlaif_{number}_\w+)\(",
        "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")),
        re.MULTILINE,
    )
    assert there and sorted(there) == sorted(name.partition("::")[2].strip("`") for name in named)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]*)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / (target or page.name)).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "src/elocute/cli").glob("*.py")), *PAGES], ids=lambda page: page.name
)
def test_the_files_a_page_names_are_there(page):
    named = set(re.findall(r"\b(?:starter|recipes|docs|benchmarks|tests|launch)/[\w./-]*\w", page.read_text()))
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def commands(page: str) -> list[list[str]]:
    """The words of every `elocute …` in a page's blocks of commands, run or not, and in the examples of `--help`."""
    fenced = re.findall(r"^```(\w*).*?\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    shell = [text.replace("\\\n", " ") for language, text in fenced if language in ("bash", "sh", "")]
    lines = [line.strip() for text in shell for line in text.splitlines()]
    lines += re.findall(r"Example: `(elocute [^`\n]*)`", page)
    found = []
    for line in lines:
        line = re.sub(r"^(srun .*? )?(torchrun|accelerate launch) .*? -m elocute\.cli", "elocute", line)
        if line.startswith("elocute "):
            found.append(shlex.split(re.split(r" *(?:[|;]| > | 2>| #|&&)", line)[0])[1:])
    return found


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "starter/README.md", *sorted((ROOT / "src/elocute/cli").glob("*.py")), *PAGES],
    ids=lambda page: page.name,
)
def test_defect_align_2_documented_commands_are_those_of_the_command_line(page):
    """Blocks marked `run` are run above; what takes hours or others' weights is at least a command that there is."""
    verbs = get_command(app)
    for words in commands(page.read_text()):
        verbs.commands[words[0]].make_context(words[0], words[1:])
