"""The ledger's schema as numbered SQL files, applied by `ledger/migrate.py`. A file that was released never changes."""
