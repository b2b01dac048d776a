"""Quantities: exact, rounded up, and nothing but quantities."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.api.quantity import InvalidQuantity, parse_bytes, parse_millicores


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0", 0), ("512Mi", 512 * 2**20), ("1G", 10**9), ("1.5Ki", 1536), (".5Ki", 512), ("1e3", 1000), ("1E3", 1000),
     ("1001m", 2), ("1n", 1), (7, 7), ("2.", 2), ("1Ei", 2**60)],
)  # fmt: skip
def test_bytes(text: str | int, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("100m", 100), ("1", 1000), (2, 2000), ("0.5", 500), ("1u", 1)])
def test_millicores(text: str | int, wanted: int) -> None:
    assert parse_millicores(text) == wanted


@pytest.mark.parametrize("text", ["", " 1", "1 Gi", "-1", "1GB", "Mi", "1e", "1e9999", "0x10", "٣", "1" * 40, "."])
def test_what_is_no_quantity_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidQuantity) as caught:
        parse_bytes(text)
    assert repr(text[:40]) in str(caught.value)


@given(st.integers(0, 10**15), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi"]))
def test_rounding_is_never_down(number: int, suffix: str) -> None:
    exact = Fraction(number, 1000)
    factor = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[suffix]
    found = parse_bytes(f"{number // 1000}.{number % 1000:03}{suffix}")
    assert exact * factor <= found < exact * factor + 1
