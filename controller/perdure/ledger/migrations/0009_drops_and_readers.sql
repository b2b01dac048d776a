-- A month is dropped in transactions of its own, and the lock that keeps everybody out of `operations` is taken last, when
-- an index has shown that nothing is left to be kept. Who ended after the month of its intent is found here; of a month's
-- rows that is next to none.
CREATE INDEX operations_late ON operations (finished_at)
 WHERE finished_at >= (month + interval '1 month') AT TIME ZONE 'UTC';

DROP FUNCTION drop_operation_months(interval);
DROP FUNCTION drop_health_months(interval);

-- The months that are over for so long, oldest first; never the last one, which takes what comes.
CREATE FUNCTION old_operation_months(kept interval) RETURNS SETOF date LANGUAGE sql STABLE AS $$
    SELECT month FROM operation_months AS old
     WHERE month + interval '1 month' <= (now() - kept) AT TIME ZONE 'UTC'
       AND EXISTS (SELECT FROM operation_months AS heir WHERE heir.month > old.month)
     ORDER BY month
$$;
CREATE FUNCTION old_health_months(kept interval) RETURNS SETOF date LANGUAGE sql STABLE AS $$
    SELECT month FROM health_months AS old
     WHERE month + interval '1 month' <= (now() - kept) AT TIME ZONE 'UTC'
       AND EXISTS (SELECT FROM health_months AS heir WHERE heir.month > old.month)
     ORDER BY month
$$;

-- Whether something that ended was recorded within that time: then the whole month stays. Without sequential scans,
-- here and below: of a month that nobody asks for any more the planner may know nothing.
CREATE FUNCTION operation_month_is_young(old date, kept interval) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE
    answer boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE recorded_at > $1 AND finished_at IS NOT NULL)',
                   to_char(old, '"operations_"YYYY"_"MM')) INTO answer USING now() - kept;
    RETURN answer;
END
$$;

-- Moves on to the next month what is under way, or ended within that time: an intent without its end is never forgotten.
-- Locks the rows that it moves, and nothing else against anybody.
CREATE FUNCTION move_operations_on(old date, kept interval) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE
    heir date;
    open bigint;
    late bigint;
BEGIN
    SELECT min(month) INTO heir FROM operation_months WHERE month > old;
    IF heir IS NULL OR operation_month_is_young(old, kept) THEN
        RETURN 0;
    END IF;
    EXECUTE format('UPDATE operations SET month = %L WHERE month = %L AND finished_at IS NULL', heir, old);
    GET DIAGNOSTICS open = ROW_COUNT;
    EXECUTE format('UPDATE operations SET month = %L WHERE month = %L AND finished_at > $1'
                   ' AND finished_at >= (month + interval ''1 month'') AT TIME ZONE ''UTC''', heir, old)
      USING now() - kept;
    GET DIAGNOSTICS late = ROW_COUNT;
    RETURN open + late;
END
$$;

-- Drops the month unless something in it is to be kept by now, and says whether it did.
CREATE FUNCTION drop_operation_month(old date, kept interval) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE
    partition text := to_char(old, '"operations_"YYYY"_"MM');
    needed boolean;
BEGIN
    LOCK TABLE operation_months IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM old_operation_months(kept) AS it (month) WHERE month = old) THEN
        RETURN false;  -- another controller was faster
    END IF;
    LOCK TABLE ONLY operations IN ACCESS EXCLUSIVE MODE;  -- from here on nobody writes: what is seen now is all there is
    EXECUTE format('SELECT EXISTS (SELECT FROM %1$I WHERE finished_at IS NULL)'
                   ' OR EXISTS (SELECT FROM %1$I WHERE finished_at > $1'
                   ' AND finished_at >= (month + interval ''1 month'') AT TIME ZONE ''UTC'')', partition)
       INTO needed USING now() - kept;
    IF needed OR operation_month_is_young(old, kept) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %I', partition);
    DELETE FROM operation_months WHERE month = old;
    RETURN true;
END
$$;

CREATE FUNCTION drop_health_month(old date, kept interval) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE
    partition text := to_char(old, '"health_events_"YYYY"_"MM');
    young boolean;
BEGIN
    LOCK TABLE health_months IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM old_health_months(kept) AS it (month) WHERE month = old) THEN
        RETURN false;
    END IF;
    LOCK TABLE ONLY health_events IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE recorded_at > $1)', partition) INTO young USING now() - kept;
    IF young THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %I', partition);
    DELETE FROM health_months WHERE month = old;
    RETURN true;
END
$$;

-- For people's questions. A quiet namespace, newest first, without walking through everybody else's rows.
CREATE INDEX operations_by_namespace ON operations (namespace, recorded_at);
CREATE INDEX health_events_by_namespace ON health_events (namespace, recorded_at);
-- What is the name of the node with this id?
CREATE INDEX bindings_by_node ON bindings (node_id, bound_at DESC);
-- Lives by name; and, among all that ever were, those that are not over. None of these columns changes with a runtime's
-- state: its row is still updated in place.
CREATE INDEX runtimes_by_name ON runtimes (name, created_at DESC);
CREATE INDEX runtimes_alive ON runtimes (kind) WHERE released_at IS NULL AND force_released_at IS NULL;
CREATE INDEX runtimes_given_up ON runtimes (node_name) WHERE released_at IS NULL AND force_released_at IS NOT NULL;
-- The catalogue: newest first, of one name or namespace, and what lies where.
CREATE INDEX archives_by_begun ON archives (begun_at DESC, sequence DESC);
CREATE INDEX archives_by_name ON archives (namespace, kind, name, begun_at DESC);
CREATE INDEX archives_by_node ON archives (node_id, state) INCLUDE (bytes) WHERE state <> 'purged';

DO $$
DECLARE
    agents text;
BEGIN
    -- Who writes the catalogue reads bindings and edges, too: agents of an upgraded ledger need no new grant.
    FOR agents IN
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
          FROM pg_class, aclexplode(relacl)
         WHERE pg_class.oid = 'archives'::regclass AND grantee <> relowner AND privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT ON bindings, phase_edges TO %s', agents);
    END LOOP;
END
$$;
