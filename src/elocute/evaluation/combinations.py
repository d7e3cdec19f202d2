"""One sentence in every combination of labels: what a model makes of them, to be heard side by side."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from elocute.data.types import Example
from elocute.prosody.schema import Schema

MOST = 48
"""Combinations; of a schema with more, each dimension's labels are taken one at a time, without the others."""


def combinations(schema: Schema) -> list[dict[str, str]]:
    """Labels by dimension, in the schema's order."""
    names = list(schema.dimensions)
    if math.prod(len(one.labels) for one in schema.dimensions.values()) <= MOST:
        every = product(*(one.labels for one in schema.dimensions.values()))
        return [dict(zip(names, labels, strict=True)) for labels in every]
    return [{name: label} for name, one in schema.dimensions.items() for label in one.labels]


def in_every_combination(example: Example, schema: Schema) -> Iterator[Example]:
    """The row's text with each combination instead of its own labels."""
    for labels in combinations(schema):
        yield replace(
            example,
            id=", ".join(f"{name}: {label}" for name, label in labels.items()),
            columns={**example.columns, "labels": labels},
        )
