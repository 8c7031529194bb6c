import signal

import pytest

# A job in the background inherits that SIGINT is ignored, and so would its workers, which
# SIGTERM could then not end: they make SIGINT of it (setup_signal_handlers_worker).
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
