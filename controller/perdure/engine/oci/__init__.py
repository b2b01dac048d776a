"""What runs inside a container, as an OCI runtime spec: pure builders, the same for every engine.

Source of the format: github.com/opencontainers/runtime-spec (config.md, config-linux.md), version 1.0.2.
"""
