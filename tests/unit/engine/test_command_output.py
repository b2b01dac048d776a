"""What a command printed is text that can be stored and sent, whatever bytes it printed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.containerd.execs import KEPT_BYTES, _text

SECRETS = st.lists(st.text(min_size=4, max_size=12), max_size=3)


@given(st.binary(max_size=KEPT_BYTES), st.booleans(), SECRETS)
def test_any_bytes_make_a_text(data: bytes, truncated: bool, hidden: list[str]) -> None:
    text = _text(data, truncated, hidden)
    assert len(text) <= KEPT_BYTES
    assert text.encode().decode() == text


@given(st.binary(max_size=50), st.binary(max_size=50), st.text("abcdef", min_size=4, max_size=12))
def test_no_bytes_around_a_secret_let_it_through(before: bytes, after: bytes, secret: str) -> None:
    whole = before + secret.encode() + after
    for end in range(len(whole) + 1):
        assert secret not in _text(whole[:end], end < len(whole), [secret])
