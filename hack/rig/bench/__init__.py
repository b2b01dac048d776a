"""Benchmarks: Perdure beside what one would use otherwise, measured in one run. Called by ``hack/bench``."""
