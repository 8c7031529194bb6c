"""A server that logs errors fails the tests that use it."""

import sqlite3
from pathlib import Path

import pytest

from deployments.servers import temporary_server
from deployments.servers._log import ServerFailed, check_server_log, find_errors
from tests.engine.waiting import wait_for

SOUND = """
 ___ ___ ___ ___ ___ ___ _____
| _ \\ _ \\ __| __| __/ __|_   _|

Check out the dashboard at http://127.0.0.1:4200

02:36:34.305 | WARNING | prefect.server.services.late_runs - An ERROR | in a text is none
02:36:34.306 | INFO    | prefect.server - Started
"""
SCHEDULER = """\
02:36:39.249 | ERROR   | docket.dependencies - ↩ [    37ms] schedule_recent_deployments()
Traceback (most recent call last):
  File "docket/worker.py", line 1134, in _execute
    result = await execution.function(
  File "prefect/server/services/scheduler.py", line 348, in schedule_recent_deployments
    inserted_runs = await models.deployments._insert_scheduled_flow_runs(
sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement; please supply a bulk_dml \
decorated function"""
LOCKED = """\
02:36:53.658 | ERROR   | prefect.server.utilities.worker_channel - Heartbeat persistence failed
Traceback (most recent call last):
  File "sqlalchemy/dialects/sqlite/aiosqlite.py", line 195, in execute
    self.await_(_cursor.execute(operation, parameters))
sqlite3.OperationalError: database is locked

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "prefect/server/models/workers.py", line 1035, in worker_heartbeat
    result = await session.execute(insert_stmt)
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked
[SQL: INSERT INTO worker (work_pool_id, name) VALUES (:work_pool_id, :name)]
(Background on this error at: https://sqlalche.me/e/20/e3q8)"""
REPLACED = """\
04:03:32.586 | ERROR   | docket.dependencies - ↩ [    96ms] evaluate_proactive_triggers_periodic()
Traceback (most recent call last):
  File "prefect/server/events/triggers.py", line 1469, in evaluate_proactive_triggers
    trigger.automation.id,
    ^^^^^^^^^^^^^^^^^^
  File "prefect/server/events/schemas/automations.py", line 87, in automation
    assert value is not None, "Trigger._automation has been garbage collected"
           ^^^^^^^^^^^^^^^^^
AssertionError: Trigger._automation has been garbage collected"""
CANCELLED = """\
09:41:44.747 | ERROR   | sqlalchemy.pool.impl.AsyncAdaptedQueuePool - \
Exception during reset or similar
Traceback (most recent call last):
  File "sqlalchemy/dialects/sqlite/aiosqlite.py", line 338, in rollback
    self.await_(self._connection.rollback())
  File "aiosqlite/core.py", line 160, in _execute
    return await future
           ^^^^^^^^^^^^
asyncio.exceptions.CancelledError"""
RESET_FAILED = CANCELLED.replace("asyncio.exceptions.CancelledError", "ValueError: no connection")
BARE = "Traceback (most recent call last):\n  File 'x.py', line 1\nSystemError: without a level"
WARNED = "02:36:53.658 | WARNING | prefect - Ignored\n" + BARE
WITHOUT_TRACEBACK = "02:36:53.658 | CRITICAL | uvicorn - Out of memory"


def test_a_sound_log_has_no_errors() -> None:
    assert find_errors("") == find_errors(SOUND) == []


@pytest.mark.parametrize(
    "error", [SCHEDULER, LOCKED, RESET_FAILED, BARE, WARNED, WITHOUT_TRACEBACK]
)
def test_an_error_is_found_whole(error: str) -> None:
    assert error in "\n".join(find_errors(f"{SOUND}{error}\n{SOUND.strip()}"))
    assert find_errors(error) == [error]


def test_known_errors_hide_no_others() -> None:
    assert find_errors("\n".join([SOUND, REPLACED, SCHEDULER, CANCELLED])) == [SCHEDULER]
    assert find_errors("\n".join([CANCELLED, RESET_FAILED, SCHEDULER])) == [RESET_FAILED, SCHEDULER]


def test_the_message_shows_the_first_errors_without_the_middle_of_their_tracebacks(
    tmp_path: Path,
) -> None:
    log = tmp_path / "server.log"
    long = SCHEDULER.replace("result = await", "x\n" * 100 + "result = await")
    log.write_text("\n".join([SOUND, long, *[WITHOUT_TRACEBACK] * 20]))
    with pytest.raises(ServerFailed) as failed:
        check_server_log(log)
    message = str(failed.value)
    assert f"logged 21 errors, see {log}" in message
    assert "schedule_recent_deployments" in message
    assert "Can't evaluate bulk DML statement" in message
    assert len(message.splitlines()) < 30


@pytest.mark.anyio
async def test_a_server_whose_scheduler_fails_is_refused(tmp_path: Path) -> None:
    async def logged() -> bool:
        return "schedule_recent_deployments" in (tmp_path / "server.log").read_text()

    async def break_scheduler() -> None:
        with temporary_server(tmp_path), sqlite3.connect(tmp_path / "prefect.db") as database:
            database.execute("DROP TABLE deployment_schedule")
            database.commit()
            await wait_for(logged, "its scheduler fails")

    with pytest.raises(ServerFailed, match="no such table: deployment_schedule"):
        await break_scheduler()
