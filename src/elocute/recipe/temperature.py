"""A temperature of sampling: one number, or one for each of the model's heads."""

from typing import Annotated

from pydantic import Field, PlainSerializer, WithJsonSchema, WrapValidator

_NUMBER = {"type": "number", "exclusiveMinimum": 0}


def _each(value, check):
    return tuple(map(check, value)) if isinstance(value, list | tuple) else check(value)


Temperature = Annotated[
    float,
    Field(gt=0),
    WrapValidator(_each),
    PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value),
    WithJsonSchema({"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]}),
]
"""float, or tuple of float."""
