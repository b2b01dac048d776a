"""Kubernetes: what comes in (intake, cache, resync), what goes out (status, Events, bindings, records), Leases."""
