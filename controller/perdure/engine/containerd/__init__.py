"""The containerd engine: 1.6, 1.7 and 2.x over their common gRPC interface."""

from perdure.engine.containerd.engine import ContainerdEngine
from perdure.engine.containerd.settings import ContainerdSettings

__all__ = ["ContainerdEngine", "ContainerdSettings"]
