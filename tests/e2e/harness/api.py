"""Reads objects straight from the API server, so that a test can look twenty times a second without a kubectl each.

What users *do* goes through `kubectl` (see `runtimes`); this only looks.
"""

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from rig.controlplane import ControlPlane

GROUP = "apis/perdure.dev/v1alpha1"
REQUEST_SECONDS = 20.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """GET requests as an administrator."""

    url: str
    token: str
    tls: ssl.SSLContext

    @classmethod
    def of(cls, plane: ControlPlane) -> "Api":
        """The API server of this control plane, which must have been started once."""
        tls = ssl.create_default_context(cafile=str(plane.authority.certificate))
        return cls(plane.url, plane.admin_token, tls)

    def get(self, path: str) -> Json | None:
        """The object under `path`, or None where there is none. Raises `OSError` while the API server is away."""
        request = urllib.request.Request(f"{self.url}/{path}", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=self.tls) as response:
                found: Json = json.load(response)
                return found
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise OSError(f"GET {path}: {error.code} {error.read()[:500]!r}") from error

    def items(self, path: str) -> list[Json]:
        """The items of the list under `path`."""
        found = self.get(path)
        assert found is not None, f"there is no list under {path}"
        items: list[Json] = found["items"]
        return items

    def nodes(self) -> list[Json]:
        """All RuntimeNodes."""
        return self.items(f"{GROUP}/runtimenodes")

    def archives(self, namespace: str) -> list[Json]:
        """All RuntimeArchives of a namespace."""
        return self.items(f"{GROUP}/namespaces/{namespace}/runtimearchives")
