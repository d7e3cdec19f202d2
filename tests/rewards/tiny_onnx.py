"""A tiny ONNX model with the names and shapes of DNSMOS P.835, its protocol buffer written by hand:
float [N, samples] → mean of the magnitudes · factors, [N, factors]."""

import struct
from pathlib import Path


def mean_times(path: Path, factors: list[float]) -> Path:
    mean = _node("Abs", ["input_1"], "magnitudes"), _node("ReduceMean", ["magnitudes"], "mean", axes=[1])
    times = _node("Mul", ["mean", "factors"], "Identity:0")
    data = struct.pack(f"<{len(factors)}f", *factors)
    tensor = _int(1, 1) + _int(1, len(factors)) + _int(2, 1) + _bytes(8, b"factors") + _bytes(9, data)
    graph = b"".join(_bytes(1, node) for node in (*mean, times)) + _bytes(2, b"g") + _bytes(5, tensor)
    graph += _bytes(11, _value("input_1", 144_160)) + _bytes(12, _value("Identity:0", len(factors)))
    path.write_bytes(_int(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _int(2, 13)))
    return path


def _node(op: str, inputs: list[str], output: str, **lists: list[int]) -> bytes:
    attributes = b"".join(
        _bytes(5, _bytes(1, name.encode()) + b"".join(_int(8, v) for v in values) + _int(20, 7))
        for name, values in lists.items()
    )
    return (
        b"".join(_bytes(1, i.encode()) for i in inputs)
        + _bytes(2, output.encode())
        + _bytes(4, op.encode())
        + attributes
    )


def _value(name: str, length: int) -> bytes:
    shape = _bytes(1, _bytes(2, b"N")) + _bytes(1, _int(1, length))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, 1) + _bytes(2, shape)))


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])
