-- What happened to containers that nobody asked for, and their starts. Rows are inserted and never changed: agents' role
-- needs SELECT and INSERT. By month as `operations` is, with the same rules (migration 3).

CREATE TABLE health_events (
    installation  text NOT NULL,
    id            text NOT NULL,
    uid           text NOT NULL,
    namespace_uid text NOT NULL,
    kind          text NOT NULL,
    namespace     text NOT NULL,
    name          text NOT NULL,
    node_name     text NOT NULL,
    container     text NOT NULL,
    event         text NOT NULL,
    probe         text,                      -- startup, readiness or liveness, where a probe says it
    exit_code     integer,
    message       text,
    happened_at   timestamptz NOT NULL,      -- by the node's clock
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    month         date NOT NULL,             -- its first day
    PRIMARY KEY (installation, id, month)
) PARTITION BY LIST (month);
CREATE INDEX health_events_by_name ON health_events (kind, namespace, name, happened_at DESC);
CREATE INDEX health_events_by_uid ON health_events (uid text_pattern_ops);
CREATE INDEX health_events_by_recorded ON health_events (recorded_at);

-- The months that there are.
CREATE TABLE health_months (
    month   date PRIMARY KEY,
    made_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION make_health_months(first_day date, last_day date) RETURNS SETOF date LANGUAGE plpgsql AS $$
DECLARE
    wanted date;
    partition text;
BEGIN
    LOCK TABLE health_months IN SHARE ROW EXCLUSIVE MODE;
    FOR wanted IN
        SELECT generate_series(date_trunc('month', first_day::timestamp), last_day::timestamp, interval '1 month')::date
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM health_months WHERE month = wanted);
        partition := to_char(wanted, '"health_events_"YYYY"_"MM');
        EXECUTE format('CREATE TABLE %I (LIKE health_events INCLUDING ALL)', partition);
        EXECUTE format('ALTER TABLE health_events ATTACH PARTITION %I FOR VALUES IN (%L)', partition, wanted);
        INSERT INTO health_months (month) VALUES (wanted);
        RETURN NEXT wanted;
    END LOOP;
END
$$;

-- Drops the months in which nothing was recorded for so long, and returns them.
CREATE FUNCTION drop_health_months(kept interval) RETURNS SETOF date LANGUAGE plpgsql AS $$
DECLARE
    horizon timestamptz := now() - kept;
    old date;
    partition text;
    young boolean;
BEGIN
    LOCK TABLE health_months IN SHARE ROW EXCLUSIVE MODE;
    FOR old IN
        SELECT month FROM health_months WHERE month + interval '1 month' <= horizon AT TIME ZONE 'UTC' ORDER BY month
    LOOP
        partition := to_char(old, '"health_events_"YYYY"_"MM');
        EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE recorded_at > $1)', partition) INTO young USING horizon;
        CONTINUE WHEN young OR NOT EXISTS (SELECT FROM health_months WHERE month > old);
        EXECUTE format('DROP TABLE %I', partition);
        DELETE FROM health_months WHERE month = old;
        RETURN NEXT old;
    END LOOP;
END
$$;

-- The month of an event, as `operation_month` decides it: that of its row if there is one, else that of its own time.
CREATE FUNCTION health_month(of_installation text, of_id text, at double precision) RETURNS date
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    wanted date := date_trunc('month', to_timestamp(at) AT TIME ZONE 'UTC');
    answer date;
BEGIN
    SELECT month INTO answer FROM health_events WHERE installation = of_installation AND id = of_id;
    IF answer IS NULL THEN
        IF wanted NOT BETWEEN this_month - interval '1 month' AND this_month + interval '1 month' THEN
            wanted := this_month;
        END IF;
        SELECT COALESCE(max(month) FILTER (WHERE month <= wanted), min(month)) INTO answer FROM health_months;
    END IF;
    RETURN answer;
END
$$;

DO $$
DECLARE
    given record;
    today date := now() AT TIME ZONE 'UTC';
BEGIN
    -- Who reads or inserts operations does so with health events, too: agents of an upgraded ledger need no new grant.
    FOR given IN
        SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
          FROM pg_class, aclexplode(relacl)
         WHERE pg_class.oid = 'operations'::regclass AND grantee <> relowner AND privilege_type IN ('SELECT', 'INSERT')
    LOOP
        EXECUTE format('GRANT %s ON health_events TO %s', given.privilege_type, given.grantee);
    END LOOP;
    EXECUTE format('ALTER FUNCTION health_month(text, text, double precision) SET search_path = %I, pg_temp',
                   current_schema());
    PERFORM make_health_months((today - interval '1 month')::date, (today + interval '3 months')::date);
END
$$;
