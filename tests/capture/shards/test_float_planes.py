"""Splitting floats into two byte planes is exact, and invalid planes are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capture.shards.float_planes import join, split

WIDTHS = {4: (np.uint32, np.float32), 2: (np.uint16, np.float16)}


def split_and_join(value_NS: np.ndarray) -> np.ndarray:
    high_NS, low, bounds = split(value_NS)
    size, dtype = value_NS.shape[1], value_NS.dtype
    parts = zip(high_NS, bounds[:-1], bounds[1:], strict=True)
    return np.stack([join(high.tobytes(), low[a:b].tobytes(), size, dtype) for high, a, b in parts])


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


@given(data=st.data(), width=st.sampled_from(sorted(WIDTHS)))
def test_split_then_join_is_identity_for_every_bit_pattern(data, width):
    whole, real = WIDTHS[width]
    shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    special = np.array([0, 1 << (8 * width - 1)], whole)  # +0 and -0
    some = st.one_of(arrays.from_dtype(np.dtype(whole)), st.sampled_from(special.tolist()))
    bits_NS = data.draw(arrays.arrays(whole, shape, elements=some))
    assert same_bits(split_and_join(bits_NS.view(real)), bits_NS.view(real))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_zero_of_either_sign_takes_one_byte(dtype):
    value_NS = np.array([[0.0, -0.0, 1.5, 0.0, -2.0, -0.0]], dtype)
    high_NS, low, bounds = split(value_NS)
    assert high_NS.shape == (1, 6)
    assert len(low) == 2 * (value_NS.itemsize - 1) == bounds[-1]
    assert same_bits(split_and_join(value_NS), value_NS)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e-40])
def test_numbers_that_look_like_zeros_keep_all_low_bytes(odd):
    value_NS = np.array([[0.0, -0.0, odd, 1.0]], np.float32)
    assert len(split(value_NS)[1]) == 4 * 3
    assert same_bits(split_and_join(value_NS), value_NS)


def test_the_high_plane_of_a_float32_is_its_exponent():
    value_NS = np.array([[1.0, -1.0, 1.999, 0.25, 3e38]], np.float32)
    assert split(value_NS)[0].tolist() == [[127, 127, 127, 125, 254]]


@pytest.mark.parametrize(
    ("high", "low", "found"),
    [
        (b"\x7f", b"123456", "1 numbers, not 2"),
        (b"\x7f\x7f", b"12345", "5 low bytes, not 6"),
        (b"\x7f\x00", b"", "0 low bytes, not 3"),
        (b"\x7f\x00", b"123456789", "9 low bytes, not 3"),
    ],
)
def test_planes_of_the_wrong_size_are_refused(high, low, found):
    with pytest.raises(ValueError, match=found):
        join(high, low, 2, np.float32)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="int32 has no planes"):
        split(np.zeros((1, 1), np.int32))
