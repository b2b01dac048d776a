"""The rig: real services on one machine, for people trying Perdure out and for its tests, demo and benchmarks.

Used by the scripts in ``hack/`` and by ``tests/``. Nothing in ``controller/`` imports it.
"""
