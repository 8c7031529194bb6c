"""Flows that show how their process was started."""

import ctypes
import os
import random
import signal
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from prefect import flow
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.context import get_settings_context
from prefect.logging import configuration

How = Literal["return", "raise", "exit", "leave", "interrupt", "segfault", "kill", "hold"]


@flow(flow_run_name="surroundings")
def surroundings() -> dict[str, Any]:
    """Tell what a run finds around it."""
    context = get_settings_context()
    main = vars(sys.modules["__main__"])
    return {
        "arguments": [sys.argv, sys.orig_argv[1:]],
        "path": sys.path,
        "flags": str(sys.flags),
        "directory": os.getcwd(),
        "environment": {each: os.environ[each] for each in os.environ if "PREFECT__" not in each},
        "settings": context.settings.model_dump(mode="json"),
        "profile": context.profile.name,
        "logging": repr(configuration.PROCESS_LOGGING_CONFIG),
        "handlers": [str(signal.getsignal(each)).partition(" at ")[0] for each in signal.Signals],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "main": {each: str(main[each]).partition(" at ")[0] for each in main if each[:2] == "__"},
        "warnings": str(warnings.filters),
        "streams": [(each.encoding, each.line_buffering) for each in (sys.stdout, sys.stderr)],
    }


@flow(flow_run_name="process")
def process() -> dict[str, Any]:
    """Tell of which process a run is a fork, and what must be its own."""
    settings = get_settings_context().settings
    keeper = Path(f"/proc/{os.getppid()}/stat").read_text()
    reads: list[int] = []  # by thread: Prefect's own have clients, too

    def note(*_: object, **__: object) -> None:
        reads.append(threading.get_ident())

    with patch("ssl.SSLContext.load_verify_locations", note):
        PrefectClient("http://localhost/api")
        SyncPrefectClient("http://localhost/api")
    return {
        "pid": os.getpid(),
        "warm": int(keeper.rpartition(")")[2].split()[1]),
        "random": [random.random(), str(uuid.uuid4()), os.urandom(8).hex()],  # noqa: S311
        "retries": settings.flows.default_retries,
        "delay": settings.flows.default_retry_delay_seconds,
        "loggers": list(settings.logging.extra_loggers or []),
        "reads of certificates": reads.count(threading.get_ident()),
        "region": os.environ.get("REGION"),
    }


@flow(flow_run_name="{how}")
def end(how: How, file: str) -> int:
    """Write down the process id, and end; `hold` does once that is taken away."""
    Path(file).with_suffix(".part").write_text(str(os.getpid()))
    Path(file).with_suffix(".part").replace(file)
    while how == "hold" and Path(file).exists():
        time.sleep(0.1)
    if how == "raise":
        raise ValueError("broke")
    if how == "exit":
        sys.exit(3)
    if how == "leave":
        os._exit(4)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1
