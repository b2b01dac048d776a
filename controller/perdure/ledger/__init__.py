"""The ledger: what was bound, done, leased and archived, in PostgreSQL 14 or newer. The only importer of psycopg."""
