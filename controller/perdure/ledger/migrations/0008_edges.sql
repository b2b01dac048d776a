-- Which phase may follow which: `EDGES` of perdure.api.phases, which a test holds this table against. A runtime's state is
-- moved along these edges alone, and in the order in which its node counted its operations, which no clock can change.
CREATE TABLE phase_edges (
    before text NOT NULL,
    after  text NOT NULL,
    PRIMARY KEY (before, after)
);
INSERT INTO phase_edges (before, after) VALUES
    ('Pending', 'Creating'), ('Pending', 'Restoring'), ('Pending', 'Running'), ('Pending', 'Stopping'),
    ('Pending', 'Stopped'), ('Pending', 'Removed'), ('Pending', 'Preserving'), ('Pending', 'Purging'),
    ('Pending', 'Failed'), ('Pending', 'Blocked'),
    ('Creating', 'Pending'), ('Creating', 'Restoring'), ('Creating', 'Running'), ('Creating', 'Stopping'),
    ('Creating', 'Stopped'), ('Creating', 'Removed'), ('Creating', 'Preserving'), ('Creating', 'Purging'),
    ('Creating', 'Failed'), ('Creating', 'Blocked'),
    ('Restoring', 'Pending'), ('Restoring', 'Creating'), ('Restoring', 'Running'), ('Restoring', 'Stopping'),
    ('Restoring', 'Stopped'), ('Restoring', 'Removed'), ('Restoring', 'Preserving'), ('Restoring', 'Purging'),
    ('Restoring', 'Failed'), ('Restoring', 'Blocked'),
    ('Running', 'Creating'), ('Running', 'Stopping'), ('Running', 'Stopped'), ('Running', 'Removed'),
    ('Running', 'Preserving'), ('Running', 'Purging'), ('Running', 'Failed'), ('Running', 'Blocked'),
    ('Stopping', 'Pending'), ('Stopping', 'Creating'), ('Stopping', 'Restoring'), ('Stopping', 'Running'),
    ('Stopping', 'Stopped'), ('Stopping', 'Removed'), ('Stopping', 'Preserving'), ('Stopping', 'Purging'),
    ('Stopping', 'Failed'), ('Stopping', 'Blocked'),
    ('Stopped', 'Pending'), ('Stopped', 'Creating'), ('Stopped', 'Restoring'), ('Stopped', 'Running'),
    ('Stopped', 'Stopping'), ('Stopped', 'Removed'), ('Stopped', 'Preserving'), ('Stopped', 'Purging'),
    ('Stopped', 'Failed'), ('Stopped', 'Blocked'),
    ('Removed', 'Pending'), ('Removed', 'Creating'), ('Removed', 'Restoring'), ('Removed', 'Running'),
    ('Removed', 'Stopping'), ('Removed', 'Stopped'), ('Removed', 'Preserving'), ('Removed', 'Purging'),
    ('Removed', 'Failed'), ('Removed', 'Blocked'),
    ('Preserving', 'Stopping'), ('Preserving', 'Removed'), ('Preserving', 'Purging'), ('Preserving', 'Blocked'),
    ('Purging', 'Stopping'), ('Purging', 'Removed'), ('Purging', 'Preserving'), ('Purging', 'Blocked'),
    ('Failed', 'Pending'), ('Failed', 'Creating'), ('Failed', 'Restoring'), ('Failed', 'Running'),
    ('Failed', 'Stopping'), ('Failed', 'Stopped'), ('Failed', 'Removed'), ('Failed', 'Preserving'),
    ('Failed', 'Purging'), ('Failed', 'Blocked'),
    ('Blocked', 'Pending'), ('Blocked', 'Creating'), ('Blocked', 'Restoring'), ('Blocked', 'Running'),
    ('Blocked', 'Stopping'), ('Blocked', 'Stopped'), ('Blocked', 'Removed'), ('Blocked', 'Preserving'),
    ('Blocked', 'Purging'), ('Blocked', 'Failed');
ALTER TABLE runtimes
    ADD COLUMN numbered_from double precision,   -- which journal of its node counted: one that was lost began anew
    ADD COLUMN operation_n   bigint,             -- the newest operation that was finished, as that journal counts
    ADD COLUMN refused       bigint NOT NULL DEFAULT 0;  -- moves that are on no edge; each of them is a defect
ALTER TABLE runtimes DROP COLUMN state_at;
