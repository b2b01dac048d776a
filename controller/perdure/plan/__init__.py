"""The decisions: pure functions from (desired, observed, record, now) to a Plan. No clock, no I/O, no exceptions."""
