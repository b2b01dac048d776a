"""Container engines behind `perdure.reconcile.ports.engine.Engine`. The only importer of grpc."""
