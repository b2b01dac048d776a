-- Ports on nodes. A number is one runtime's for each transport, however many controllers and agents race for it. The
-- controller alone gives ports back, and needs DELETE on `ports` for it; agents' role still needs no DELETE anywhere.
CREATE TABLE ports (
    installation text NOT NULL,
    node_id      text NOT NULL,
    protocol     text NOT NULL CHECK (protocol IN ('TCP', 'UDP')), -- a port for both has two rows of one number
    port         integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    uid          text NOT NULL,
    name         text NOT NULL,              -- of the port in the spec
    static       boolean NOT NULL,           -- the number was asked for: nothing else will do
    reserved_at  timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,                -- somebody may know it: it never changes from then on
    PRIMARY KEY (installation, node_id, protocol, port)
);
CREATE INDEX ports_by_uid ON ports (installation, uid);

-- What Dynamic ports of a node are drawn from. Its row is locked by whoever changes ports of that node.
CREATE TABLE port_ranges (
    installation text NOT NULL,
    node_id      text NOT NULL,
    first_port   integer NOT NULL,
    last_port    integer NOT NULL,
    latest       integer NOT NULL DEFAULT 0, -- the number that was drawn last: the next one is sought behind it
    PRIMARY KEY (installation, node_id)
);
