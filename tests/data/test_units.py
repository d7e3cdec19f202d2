import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from elocute.data.units import UnitStore, write_units
from elocute.errors import InputError

SHAPES = st.one_of(st.tuples(st.integers(1, 30)), st.tuples(st.integers(1, 9), st.integers(1, 4)))
UNITS = SHAPES.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2**31 - 1)))


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), UNITS, max_size=4))
def test_what_is_written_is_read(tmp_path_factory, units):
    path = tmp_path_factory.mktemp("store") / "u.safetensors"
    write_units(path, {k: v for k, v in units.items() if k != "__metadata__"}, "d1", codec="starter")
    store = UnitStore(path)
    assert (store.digest, store.codec, store.keys()) == ("d1", "starter", units.keys() - {"__metadata__"})
    for key in store.keys():
        assert store.get(key).dtype == np.int64
        np.testing.assert_array_equal(store.get(key), units[key])


def test_the_same_units_give_the_same_bytes(tmp_path):
    for i in range(20):
        write_units(tmp_path / f"{i}", {"b": np.arange(3), "a": np.arange(40_000)}, "d", codec="starter")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_small_units_take_two_bytes(tmp_path):
    write_units(tmp_path / "a", {"k": np.full(10_000, 32_767)}, "d")
    write_units(tmp_path / "b", {"k": np.full(10_000, 32_768)}, "d")
    assert (tmp_path / "a").stat().st_size < 20_300 and 40_000 < (tmp_path / "b").stat().st_size < 40_300


@pytest.mark.parametrize("units", [[0.5], [], [[[1]]], [-1], [2**31]])
def test_what_is_no_unit_sequence_is_not_written(tmp_path, units):
    with pytest.raises((TypeError, ValueError), match="units 'k'"):
        write_units(tmp_path / "a", {"k": np.array(units)}, "d")
    assert not list(tmp_path.iterdir())


def test_another_codec_is_an_error_that_names_both(tmp_path):
    write_units(tmp_path / "a", {"k": np.arange(3)}, "digest-of-then", codec="starter")
    store = UnitStore(tmp_path / "a")
    store.check_made_by("digest-of-then")
    with pytest.raises(InputError, match="starter digest-of-then.*digest-of-now"):
        store.check_made_by("digest-of-now")


def test_a_missing_key_is_an_error(tmp_path):
    write_units(tmp_path / "a", {"k": np.arange(3)}, "d")
    with pytest.raises(InputError, match="a: no encoded audio called 'other'"):
        UnitStore(tmp_path / "a").get("other")


@pytest.mark.parametrize(
    "tensor", [np.zeros(3, np.float32), np.array([-1], np.int16), np.zeros(0, np.int16), np.array(3, np.int32)]
)
def test_a_store_by_other_hands_is_checked(tmp_path, tensor):
    save_file({"k": tensor}, tmp_path / "a", metadata={"codec_digest": "d"})
    with pytest.raises(InputError, match="a#k: expected units"):
        UnitStore(tmp_path / "a").get("k")


def test_what_is_no_store_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not found"):
        UnitStore(tmp_path / "missing")
    (tmp_path / "text").write_text("hello there, this is text")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        UnitStore(tmp_path / "text")
    save_file({"k": np.zeros(3, np.int16)}, tmp_path / "weights")
    with pytest.raises(InputError, match="lacks 'codec_digest'"):
        UnitStore(tmp_path / "weights")
