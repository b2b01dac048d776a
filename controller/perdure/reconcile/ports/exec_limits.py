"""How much Linux lets a program be started with: known before anything is put together, so that a node's memory is not
spent on what no kernel would take. Read by whoever resolves an environment and by engines.

Source: execve(2), "Limits on size of arguments and environment"; fs/exec.c, `bprm_stack_limits`.
"""

from __future__ import annotations

STRING_BYTES = 32 * 4096
"""MAX_ARG_STRLEN: one word, or one variable as `name=value`, with the NUL at its end."""
TOTAL_BYTES = 2 * 1024 * 1024
"""All words and variables together: a quarter of the stack limit, which is 8 MiB unless an administrator changed it. It
is held to where the node's limit is higher, too: a runtime is to start on any node."""
POINTER_BYTES = 8
"""Each of them also counts with the pointer to it."""


def word_bytes(word: str) -> int:
    """What one word takes, its NUL counted."""
    return len(word.encode()) + 1


def variable_bytes(name: str, value: str) -> int:
    """What one variable takes, `=` and NUL counted."""
    return len(name.encode()) + len(value.encode()) + 2


def too_long(what: str, size: int) -> str:
    """For people: this one is too long."""
    return (
        f"{what} takes {size} bytes, and the kernel takes {STRING_BYTES} at most (MAX_ARG_STRLEN); make it shorter, or "
        "put it into a file"
    )


def too_much(what: str) -> str:
    """For people: together they are too much. `what` has the sizes."""
    return (
        f"{what}, and the kernel takes {TOTAL_BYTES} together at most (execve: a quarter of the usual stack limit of "
        "8 MiB); make them shorter, or put them into files"
    )
