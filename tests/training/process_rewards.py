"""Rewards of the runs in test_processes.py, which copies this file: some know which process they are in."""

import os
import time
from pathlib import Path


def fours(completions):
    texts = [completion[0]["content"].split() for completion in completions]
    return [text.count("four") / len(text) if text else 0.0 for text in texts]


def first_place():  # of a step's 16 answers each process has as many
    return 16 // int(os.environ.get("WORLD_SIZE", 1)) * int(os.environ.get("RANK", 0))


def without(places, completions):
    first = first_place()
    return [None if first + i in places else value for i, value in enumerate(fours(completions))]


def all_but_five(completions):
    return without(range(5), completions)


def first_half(completions):
    first = first_place()
    return [value if first + i < 8 else 0.5 for i, value in enumerate(fours(completions))]


def all_but_nine(completions):
    return without([0, 1, 2, 3, 11, 12, 13, 14, 15], completions)


def proper(completions):
    return [1.0] * len(completions)


def until_told(completions):
    here = Path(__file__).parent
    while (here / "killed/checkpoints/step-1/state.json").exists() and not (here / "told").exists():
        time.sleep(0.05)
    return fours(completions)
