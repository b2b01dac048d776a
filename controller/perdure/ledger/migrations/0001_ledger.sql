-- The ledger's first schema. One database may serve several installations (Kubernetes clusters): every table of theirs
-- has an installation column. Agents' role needs SELECT, INSERT, UPDATE on the tables and USAGE on the sequences; no
-- role needs DELETE.

-- Which ledger this is: agents remember it, and touch nothing destructive when it is another one.
CREATE TABLE ledger_identity (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id         text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO ledger_identity (id) VALUES (gen_random_uuid()::text);

-- uid -> node, decided once and never updated.
CREATE TABLE bindings (
    installation text NOT NULL,
    uid          text NOT NULL,
    node_name    text NOT NULL,
    node_id      text NOT NULL,
    bound_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (installation, uid)
);

-- One row per life (uid) of a runtime.
CREATE TABLE runtimes (
    installation        text NOT NULL,
    uid                 text NOT NULL,
    namespace_uid       text NOT NULL,
    kind                text NOT NULL,
    namespace           text NOT NULL,
    name                text NOT NULL,
    node_name           text,
    actual_state        text,                -- phase after the newest finished operation
    state_at            timestamptz,         -- when that operation ended, by its node's clock
    container           text,
    image               text,
    snapshot_key        text,                -- set once an operation reported data, and kept: "this life had data"
    released_at         timestamptz,         -- its data was archived, purged, or was never there
    released_by         text,                -- id of the operation that released it
    force_released_at   timestamptz,         -- a person gave the object up; its data is an orphan
    force_release_reason text,
    version             bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (installation, uid)
);
CREATE INDEX runtimes_by_identity ON runtimes (installation, namespace_uid, kind, name);

-- Append-only: a row is inserted with the intent (or, where the intent was lost, with the end) and completed once.
CREATE TABLE operations (
    installation  text NOT NULL,
    id            text NOT NULL,
    uid           text NOT NULL,
    namespace_uid text NOT NULL,
    kind          text NOT NULL,
    namespace     text NOT NULL,
    name          text NOT NULL,
    node_name     text NOT NULL,
    op            text,
    source        text,
    fence         bigint,                    -- of the lease it was begun under, for operations that need one
    before        text,
    after         text,
    outcome       text,
    error_code    text,
    message       text,
    image         text,
    snapshot_key  text,
    started_at    timestamptz,               -- by the node's clock
    finished_at   timestamptz,
    happened_at   timestamptz GENERATED ALWAYS AS (COALESCE(started_at, finished_at)) STORED,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (installation, id)
);
CREATE INDEX operations_by_name ON operations (kind, namespace, name, happened_at DESC);
CREATE INDEX operations_by_uid ON operations (installation, uid);

-- Exclusion for long and destructive operations. Fences rise with every taking of any lease.
CREATE SEQUENCE fences AS bigint;
CREATE TABLE leases (
    installation text NOT NULL,
    key          text NOT NULL,
    holder       text NOT NULL,
    token        text NOT NULL,              -- empty: released
    fence        bigint NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (installation, key)
);
CREATE INDEX leases_by_fence ON leases (installation, fence);

-- The catalogue. Sequences order archives; clocks do not.
CREATE SEQUENCE archive_sequences AS bigint;
CREATE TABLE archives (
    installation       text NOT NULL,
    sequence           bigint NOT NULL,
    operation          text NOT NULL,
    state              text NOT NULL CHECK (state IN ('writing', 'verified', 'quarantined', 'purging', 'purged')),
    uid                text NOT NULL,
    namespace_uid      text NOT NULL,
    kind               text NOT NULL,
    namespace          text NOT NULL,
    name               text NOT NULL,
    store              text NOT NULL DEFAULT '',
    node_id            text,                 -- the only node that can read it; null = anywhere
    snapshot_key       text NOT NULL,
    image              text NOT NULL,
    image_digest       text NOT NULL,
    chain_id           text NOT NULL,
    sha256             text NOT NULL DEFAULT '',
    bytes              bigint NOT NULL DEFAULT 0,
    entries            bigint NOT NULL DEFAULT 0,
    uncompressed_bytes bigint NOT NULL DEFAULT 0,
    empty              boolean NOT NULL DEFAULT false,
    retain             boolean NOT NULL DEFAULT false,
    object_name        text NOT NULL DEFAULT '', -- of its RuntimeArchive object; set when it is verified
    why                text NOT NULL DEFAULT '', -- of a quarantine
    begun_at           timestamptz NOT NULL DEFAULT now(),
    verified_at        timestamptz,
    published_at       timestamptz,          -- its RuntimeArchive object was made
    quarantined_at     timestamptz,
    purging_at         timestamptz,          -- a person wanted it gone
    purged_at          timestamptz,          -- the bytes are gone
    unpublished_at     timestamptz,          -- its RuntimeArchive object was taken down after the purge
    PRIMARY KEY (installation, sequence)
);
-- An operation has one archive at a time: where a purge took what it was writing, it begins another.
CREATE UNIQUE INDEX archives_of_operation ON archives (installation, operation) WHERE state IN ('writing', 'verified');
CREATE INDEX archives_by_identity ON archives (installation, namespace_uid, kind, name, sequence DESC)
    WHERE state <> 'purged';
CREATE INDEX archives_by_object ON archives (installation, namespace_uid, object_name) WHERE object_name <> '';
CREATE INDEX archives_unpublished ON archives (installation, sequence) WHERE state = 'verified' AND published_at IS NULL;
CREATE INDEX archives_purging ON archives (installation, sequence) WHERE state = 'purging';
CREATE INDEX archives_purged ON archives (installation, sequence) WHERE state = 'purged' AND unpublished_at IS NULL;
