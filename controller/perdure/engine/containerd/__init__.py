"""The containerd engine, over the gRPC interface that 1.6 and 1.7, with which it was tested, and 2.x have in common."""

from perdure.engine.containerd.engine import ContainerdEngine
from perdure.engine.containerd.settings import ContainerdSettings

__all__ = ["ContainerdEngine", "ContainerdSettings"]
