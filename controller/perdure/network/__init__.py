"""Networks of runtimes behind `perdure.reconcile.ports.Sandbox`."""
