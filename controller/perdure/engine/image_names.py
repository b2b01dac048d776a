"""Short image names made whole, as Docker and Kubernetes do: `foo` is `docker.io/library/foo:latest`.

Pure. Source of the grammar: github.com/distribution/reference.
"""

from __future__ import annotations

import re

DEFAULT_REGISTRY = "docker.io"
OFFICIAL = "library"
DEFAULT_TAG = "latest"

_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
MAX_LENGTH = 255


class InvalidImageName(ValueError):
    """The text names no image; the message says which part is wrong."""


def normalise(text: str) -> str:
    """The full name. Raises `InvalidImageName`.

    The first part is a registry if it has a dot or a colon, is `localhost`, or is not in lower case.
    """
    name, _, digest = text.strip().partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise InvalidImageName(f"image {text[:80]!r}: {digest[:80]!r} is not a digest such as sha256:…")
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, path = head, rest
    else:
        registry, path = DEFAULT_REGISTRY, name
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    path, colon, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"{OFFICIAL}/{path}"
    if not _REGISTRY.fullmatch(registry):
        raise InvalidImageName(f"image {text[:80]!r}: {registry[:80]!r} is not a registry's host")
    if not _PATH.fullmatch(path) or len(f"{registry}/{path}") > MAX_LENGTH:
        raise InvalidImageName(f"image {text[:80]!r}: {path[:80]!r} is not a repository (lower case, digits, . _ - /)")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidImageName(f"image {text[:80]!r}: {tag[:80]!r} is not a tag")
    suffix = f":{tag}" if colon else "" if digest else f":{DEFAULT_TAG}"
    return f"{registry}/{path}{suffix}" + (f"@{digest}" if digest else "")
