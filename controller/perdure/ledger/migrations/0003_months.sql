-- Operations by month, so that old ones go by dropping a table. A row's month is decided once, when its id is first
-- written, by `operation_month`: whatever comes later for that id (its end, a repetition) finds the row and its month.
-- Agents' role needs nothing new: it writes through `operations`. Months are made and dropped by the tables' owner.

ALTER TABLE operations RENAME TO operations_unparted;

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
    month         date NOT NULL              -- its first day
) PARTITION BY LIST (month);

-- The months that there are.
CREATE TABLE operation_months (
    month   date PRIMARY KEY,
    made_at timestamptz NOT NULL DEFAULT now()
);

-- Makes the months that are missing between two days, and returns them. Attaching a table that was made apart blocks no
-- writer, which CREATE TABLE ... PARTITION OF would.
CREATE FUNCTION make_operation_months(first_day date, last_day date) RETURNS SETOF date LANGUAGE plpgsql AS $$
DECLARE
    wanted date;
    partition text;
BEGIN
    LOCK TABLE operation_months IN SHARE ROW EXCLUSIVE MODE;
    FOR wanted IN
        SELECT generate_series(date_trunc('month', first_day::timestamp), last_day::timestamp, interval '1 month')::date
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM operation_months WHERE month = wanted);
        partition := to_char(wanted, '"operations_"YYYY"_"MM');
        EXECUTE format('CREATE TABLE %I (LIKE operations INCLUDING ALL)', partition);
        EXECUTE format('ALTER TABLE operations ATTACH PARTITION %I FOR VALUES IN (%L)', partition, wanted);
        INSERT INTO operation_months (month) VALUES (wanted);
        RETURN NEXT wanted;
    END LOOP;
END
$$;

-- Drops the months in which nothing was recorded for so long, and returns them. What is still under way, or ended later,
-- moves on to the next month first: an intent without its end is never forgotten.
CREATE FUNCTION drop_operation_months(kept interval) RETURNS SETOF date LANGUAGE plpgsql AS $$
DECLARE
    horizon timestamptz := now() - kept;
    old date;
    heir date;
    partition text;
    young boolean;
BEGIN
    LOCK TABLE operation_months IN SHARE ROW EXCLUSIVE MODE;
    FOR old IN
        SELECT month FROM operation_months WHERE month + interval '1 month' <= horizon AT TIME ZONE 'UTC' ORDER BY month
    LOOP
        partition := to_char(old, '"operations_"YYYY"_"MM');
        EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE recorded_at > $1 AND finished_at IS NOT NULL)', partition)
           INTO young USING horizon;
        SELECT min(month) INTO heir FROM operation_months WHERE month > old;
        CONTINUE WHEN young OR heir IS NULL;
        UPDATE operations SET month = heir WHERE month = old AND (finished_at IS NULL OR finished_at > horizon);
        EXECUTE format('DROP TABLE %I', partition);
        DELETE FROM operation_months WHERE month = old;
        RETURN NEXT old;
    END LOOP;
END
$$;

-- The month of an operation: that of its row if there is one. Else that of its own time `at` (seconds since the epoch),
-- which is the same however often and from whichever connection it is written; but a time that is not near the present
-- (a wrong clock; rows that waited long in a journal) counts as now, so that they are kept as long as others from here.
-- It is volatile so that its query sees what was committed a moment ago, not only what the calling statement sees; and
-- runs as its owner, so that it may see the list of months.
CREATE FUNCTION operation_month(of_installation text, of_id text, at double precision) RETURNS date
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    wanted date := date_trunc('month', to_timestamp(at) AT TIME ZONE 'UTC');
    answer date;
BEGIN
    SELECT month INTO answer FROM operations WHERE installation = of_installation AND id = of_id;
    IF answer IS NULL THEN
        IF wanted NOT BETWEEN this_month - interval '1 month' AND this_month + interval '1 month' THEN
            wanted := this_month;
        END IF;
        -- Where nobody made months for long, the last one takes it all: a write never fails for want of a table.
        SELECT COALESCE(max(month) FILTER (WHERE month <= wanted), min(month)) INTO answer FROM operation_months;
    END IF;
    RETURN answer;
END
$$;

DO $$
DECLARE
    given record;
    today date := now() AT TIME ZONE 'UTC';
BEGIN
    -- Of a function with its owner's rights: the tables of this schema, whatever the caller's session has made.
    EXECUTE format('ALTER FUNCTION operation_month(text, text, double precision) SET search_path = %I, pg_temp',
                   current_schema());
    PERFORM make_operation_months(
        LEAST((SELECT min(recorded_at) AT TIME ZONE 'UTC' FROM operations_unparted)::date, today - interval '1 month')::date,
        (today + interval '3 months')::date
    );
    FOR given IN
        SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
          FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = 'operations_unparted'::regclass AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON operations TO %s', given.privilege_type, given.grantee);
    END LOOP;
END
$$;

INSERT INTO operations (
    installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, source, fence, before, after, outcome,
    error_code, message, image, snapshot_key, started_at, finished_at, recorded_at, month
)
SELECT installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, source, fence, before, after, outcome,
       error_code, message, image, snapshot_key, started_at, finished_at, recorded_at,
       date_trunc('month', recorded_at AT TIME ZONE 'UTC')
  FROM operations_unparted;

DROP TABLE operations_unparted;

ALTER TABLE operations ADD PRIMARY KEY (installation, id, month);
CREATE INDEX operations_by_name ON operations (kind, namespace, name, happened_at DESC);
CREATE INDEX operations_by_uid ON operations (uid text_pattern_ops);
CREATE INDEX operations_by_recorded ON operations (recorded_at);
CREATE INDEX operations_open ON operations (started_at) WHERE finished_at IS NULL;
CREATE INDEX operations_failed ON operations (finished_at) WHERE outcome = 'failure';
-- What is seldom and asked for across everything: what went wrong? Whose data was archived, removed, given up?
CREATE INDEX operations_unsuccessful ON operations (recorded_at) WHERE outcome <> 'success';
CREATE INDEX operations_rare ON operations (recorded_at) WHERE op NOT IN ('start', 'stop', 'restart');
