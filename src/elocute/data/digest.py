"""Digests of files and folders, by content: what a cache is keyed by and what a run notes down about its inputs."""

import hashlib
from pathlib import Path

from elocute.errors import InputError


def digest_path(path: str | Path) -> str:
    """`digest_folder` of a folder, `digest_file` of anything else."""
    return digest_folder(path) if Path(path).is_dir() else digest_file(path)


def digest_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, 64 hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def digest_folder(path: str | Path) -> str:
    """The sha256 over the names and contents of all files below a folder; where it lies and its dates do not matter."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: expected a folder")
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    # A name cannot hold "\0", so no two folders give the same lines.
    lines = (f"{digest_file(path / name)} {name}\0" for name in names)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
