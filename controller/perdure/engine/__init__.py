"""Container engines behind `perdure.reconcile.ports.Engine`. The only importer of grpc."""
