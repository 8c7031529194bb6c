"""Installs the lock into this environment: pip gets `uv` alone, and uv, which is faster, the rest.

It needs Python alone. uv does not read pip's configuration: where that says where packages are, and
how to get there, uv is told. Where uv can't install all the same, pip does.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LOCK = "requirements-dev.txt"
# What pip's configuration calls it, and uv.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
}
SECTIONS = ("global", "install", ":env:")  # of that configuration: a later one wins
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
PIP_INSTALL = [*PIP, "install", "-q", "--require-hashes", "-r"]
# Bytecode now, on all cores: else each process of the first run makes its own, on one.
UV_INSTALL = ["pip", "install", "-q", "--compile-bytecode", "--require-hashes", "-r", LOCK]


def install() -> int:
    """Install what the lock says, and return the exit status of that."""
    if uv := _find_uv():
        command = [uv, *UV_INSTALL, "--python", sys.executable]
        if subprocess.run(command, env=_read_pip() | os.environ, check=False).returncode == 0:
            return 0
    sys.stderr.write("uv can't install this here, see above: pip does, which takes longer.\n")
    # The lock is a constraint, too: pip before 23.3 looks for `sqlalchemy[asyncio]` without a pin.
    return subprocess.run([*PIP_INSTALL, LOCK, "-c", LOCK], check=False).returncode


def _find_uv() -> str | None:
    """Install the uv of the lock, and return its path; or, where pip can't, that of another."""
    lock, alone = Path(LOCK).read_text(), Path(sys.prefix, "uv.txt")
    alone.write_text("".join(re.findall(r"(?ms)^uv==.*?(?=^\w|\Z)", lock)))
    got = subprocess.run([*PIP_INSTALL, alone], check=False).returncode == 0
    return shutil.which("uv", path=Path(sys.executable).parent if got else None)


def _read_pip() -> dict[str, str]:
    """Return pip's configuration, as environment variables of uv."""
    listed = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, text=True, check=True)
    found = re.findall(r"(?m)^(global|install|:env:)\.([\w-]+)=(.+)$", listed.stdout)
    found.sort(key=lambda each: SECTIONS.index(each[0]))
    given = {name: said for _, name, value in found if (said := ast.literal_eval(value).split())}
    env = {
        variable: ("," if name == "find-links" else " ").join(given[name])
        for name, variable in VARIABLES.items()
        if name in given
    }
    return env | {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip's: hashes tell the right file


if __name__ == "__main__":
    sys.exit(install())
