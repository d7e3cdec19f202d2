"""The command line: verbs, nothing else. Exit status 0, 1 (failed) or 2 (bad usage or input: one clear line)."""

from elocute.cli.app import app, main

__all__ = ["app", "main"]
