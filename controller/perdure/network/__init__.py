"""Networks of runtimes behind `perdure.reconcile.ports.sandbox.Sandbox`."""
