"""What a person finds in the log, and what must never be there."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
import structlog

from perdure.telemetry.logs import LogFormat, LogLevel, configure, redact

DSN = "postgresql://perdure:hunter2@db.example:5432/perdure"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_event_with_its_ids() -> None:
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream)
    structlog.get_logger("perdure.reconcile").info("step done", uid="u1", step="StartTask")
    (line,) = lines(stream)
    assert line["event"] == "step done"
    assert (line["uid"], line["step"], line["level"]) == ("u1", "StartTask", "info")
    assert str(line["timestamp"]).endswith("Z")


def test_ids_bound_to_the_context_are_in_every_line_also_of_libraries() -> None:
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream)
    with structlog.contextvars.bound_contextvars(uid="u1"):
        structlog.get_logger().info("ours")
        logging.getLogger("asyncio").warning("theirs %d", 1)
    assert [(line["event"], line["uid"]) for line in lines(stream)] == [("ours", "u1"), ("theirs 1", "u1")]


def test_the_node_is_in_every_line_of_its_processes_in_every_thread_also_of_libraries() -> None:
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream, node="node-3")

    def tell() -> None:
        structlog.get_logger("perdure.kube").info("seen")
        logging.getLogger("a.library").warning("told")

    thread = threading.Thread(target=tell)
    thread.start()
    thread.join()
    structlog.get_logger("perdure.kube").info("bound", node="node-4")
    assert [line["node"] for line in lines(stream)] == ["node-3", "node-3", "node-4"]
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream)
    structlog.get_logger("perdure.kube").info("seen")
    assert "node" not in lines(stream)[0]


def test_a_line_of_kopf_about_an_object_has_our_names() -> None:
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream)
    reference = {"kind": "BotRuntime", "namespace": "shop", "name": "ada", "uid": "u1"}
    logging.getLogger("kopf.objects").warning("something", extra={"k8s_ref": reference})
    (line,) = lines(stream)
    assert (line["runtime"], line["uid"]) == ("BotRuntime/shop/ada", "u1")


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure(LogLevel.INFO, LogFormat.JSON, stream)
    structlog.get_logger().debug("detail")
    logging.getLogger("kubernetes").debug("detail")
    logging.getLogger("kopf.objects").info("one line per event")
    assert stream.getvalue() == ""
    configure(LogLevel.DEBUG, LogFormat.JSON, stream)
    structlog.get_logger().debug("detail")
    assert len(lines(stream)) == 1


def test_a_library_that_sets_its_own_level_is_held_to_ours() -> None:
    stream = io.StringIO()
    configure(LogLevel.ERROR, LogFormat.JSON, stream)
    talkative = logging.getLogger("test.talkative")
    talkative.setLevel(logging.DEBUG)
    talkative.warning("attempt 1 failed")
    assert stream.getvalue() == ""


def test_auto_is_for_people_on_a_terminal_and_for_machines_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    configure(stream=terminal)
    structlog.get_logger().info("hello", uid="u1")
    configure(stream=pipe)
    structlog.get_logger().info("hello", uid="u1")
    assert "\x1b[" in terminal.getvalue()
    assert lines(pipe)[0]["uid"] == "u1"


def test_configuring_again_does_not_write_twice() -> None:
    stream = io.StringIO()
    configure(form=LogFormat.JSON, stream=stream)
    configure(form=LogFormat.JSON, stream=stream)
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_password_is_in_no_line(form: LogFormat, stream: type[io.StringIO]) -> None:
    out = stream()
    configure(form=form, stream=out)
    log = structlog.get_logger()
    log.info("connecting", address=DSN)
    log.info("connecting", password="hunter2", database_url="hunter2")
    log.info("connecting", settings={"of": [DSN]}, error=ValueError(f"bad {DSN}"))
    logging.getLogger("psycopg.pool").warning("error connecting to %r", "host=db password=hunter2 user=perdure")
    for logger in (log, logging.getLogger("psycopg")):
        try:
            raise ConnectionError(f"cannot connect to {DSN}")
        except ConnectionError:
            logger.exception("failed")
    text = out.getvalue()
    assert "hunter2" not in text
    assert "db.example" in text
    assert text.count("ConnectionError") >= 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DSN, "postgresql://perdure:***@db.example:5432/perdure"),
        ("postgres://u:p/a@s:s@h/d?x=1", "postgres://u:***@h/d?x=1"),
        ("postgres://:p@/d?host=/run/pg", "postgres://:***@/d?host=/run/pg"),
        ("host=h password='it is' dbname=d", "host=h password=*** dbname=d"),
        ("postgres://h/d?user=u&password=p&sslmode=require", "postgres://h/d?user=u&password=***&sslmode=require"),
        ("https://example.org:443/path", "https://example.org:443/path"),
        ("password authentication failed for user u", "password authentication failed for user u"),
    ],
)
def test_redact_takes_the_password_and_leaves_the_rest(text: str, expected: str) -> None:
    assert redact(text) == expected
