"""The words: typed objects parsed from custom resources, phases, conditions, names. No I/O, no imports of ours."""
