-- For questions across everything: what did this source do, what ended so? And for one life, newest first, without reading
-- all of it.
CREATE INDEX operations_by_source ON operations (source, recorded_at);
CREATE INDEX operations_by_outcome ON operations (outcome, recorded_at) WHERE outcome <> 'success';
CREATE INDEX operations_by_life ON operations (uid text_pattern_ops, recorded_at);
DROP INDEX operations_unsuccessful;
DROP INDEX operations_by_uid;
