-- What one cause brought about: operations of the same edit of a spec, request, deletion or end of a process have the same
-- id here. What was recorded before has none.
ALTER TABLE operations ADD COLUMN correlation text;
CREATE INDEX operations_by_correlation ON operations (correlation) WHERE correlation IS NOT NULL;

-- The snapshot that this verified archive is of is about to be removed: nothing is started on it before this is taken
-- back. Whoever finds that snapshot gone knows by this, even without the node's journal, that nothing is missing.
ALTER TABLE archives ADD COLUMN removing_at timestamptz;
