"""Perdure: runtimes that outlast their containers. The packages and who may import whom are described in the README."""

__version__ = "0.1.0"
