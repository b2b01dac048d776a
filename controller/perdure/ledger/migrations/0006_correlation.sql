-- What one cause brought about: operations of the same edit of a spec, request, deletion or end of a process have the same
-- id here. What was recorded before has none.
ALTER TABLE operations ADD COLUMN correlation text;
CREATE INDEX operations_by_correlation ON operations (correlation) WHERE correlation IS NOT NULL;
