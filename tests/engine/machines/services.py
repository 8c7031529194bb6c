"""What all machines reach: a registry of images, an object store, git, and Prefect's servers."""

import base64
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from deployments.project import ROOT
from deployments.servers import tail
from tests.engine.machines.machine import ADDRESS, execute
from tests.engine.waiting import wait_until

REGISTRY = f"{ADDRESS}:5000"
STORE_URL = f"http://{ADDRESS}:8080"
STORE_KEY = "flows:worker"
GIT_URL = f"https://{ADDRESS}:8443/project.git"
REGISTRY_SECRET, STORE_SECRET, GIT_SECRET, SERVER_SECRET = (secrets.token_hex() for _ in range(4))
ENCRYPTION_KEY = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
NGINX = ROOT / "docker" / "nginx.conf"
LISTEN = "listen 127.0.0.1:8080;"
SERVERS = ("server 127.0.0.1:4200", "server 127.0.0.1:4201")
SECRETS = (REGISTRY_SECRET, STORE_SECRET, GIT_SECRET, SERVER_SECRET, ENCRYPTION_KEY)


class Service:
    """A process that can go away and come back."""

    def __init__(self, name: str, command: list[str], directory: Path, url: str) -> None:
        self._name, self._command, self._url = name, command, url
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert shutil.which(self._command[0]), f"{self._command[0]} is not installed"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_until(self._answers, f"the {self._name} answers", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{tail(self.log)}") from None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self._url, timeout=5)
        except urllib.error.HTTPError:  # it wants credentials
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it at once, as a machine that fails."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        try:
            self.start()
            yield self
        finally:
            self.stop()


@contextlib.contextmanager
def trusted(directory: Path) -> Iterator[Path]:
    """A certificate of this address, with its key in one file, that Docker Engines here trust."""
    file = directory / "certificate.pem"
    execute(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", f"/CN={ADDRESS}", "-addext", f"subjectAltName=IP:{ADDRESS}"),
        *("-keyout", f"{file}.key", "-out", str(file)),
    )
    of_docker = Path("/etc/docker/certs.d") / REGISTRY
    of_docker.mkdir(parents=True)
    try:
        shutil.copy(file, of_docker / "ca.crt")
        yield file
    finally:
        shutil.rmtree(of_docker)


def registry(directory: Path, certificate: Path) -> Service:
    """Debian's docker-registry, which wants a password."""
    users = directory / "registry-users"
    hashed = execute(
        "perl", "-e", "print crypt($ARGV[0], q{$2b$05$" + "a" * 22 + "})", REGISTRY_SECRET
    )
    users.write_text(f"me:{hashed}\n")
    config = directory / "registry.yaml"
    config.write_text(
        f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}
http: {{addr: "{REGISTRY}", tls: {{certificate: {certificate}, key: {certificate}.key}}}}
auth: {{htpasswd: {{realm: tests, path: {users}}}}}
"""
    )
    command = ["docker-registry", "serve", str(config)]
    return Service("registry", command, directory, f"http://{REGISTRY}")


def store(directory: Path) -> Service:
    """OpenStack Swift with its S3 API, which checks signatures."""
    script = Path(__file__).with_name("store.sh")
    command = ["bash", str(script), str(directory / "swift"), STORE_URL, STORE_KEY, STORE_SECRET]
    # In a space of its own, since Swift reads /etc/swift and no other place.
    space = ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--mount-proc"]
    return Service("object store", [*space, *command], directory, f"{STORE_URL}/healthcheck")


def git_server(directory: Path, certificate: Path) -> Service:
    """The repositories of a directory over https, with the token: nginx before git itself."""
    home = directory / "git"
    home.mkdir()
    users = home / "users"
    # Git hosts take a token for the user or the password; Prefect sends it as the user.
    users.write_text(f"{GIT_SECRET}:{{PLAIN}}\n")
    users.chmod(0o644)
    backend = f"{execute('git', '--exec-path')}/git-http-backend"
    config = home / "nginx.conf"
    config.write_text(
        f"""
daemon off; user root; pid {home}/nginx.pid; error_log {home}/error.log;
events {{}}
http {{
    access_log off;
    server {{
        listen {GIT_URL.split("/")[2]} ssl;
        ssl_certificate {certificate}; ssl_certificate_key {certificate}.key;
        auth_basic git; auth_basic_user_file {users};
        location / {{
            include /etc/nginx/fastcgi_params;
            fastcgi_param SCRIPT_FILENAME {backend};
            fastcgi_param GIT_PROJECT_ROOT {directory};
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param REMOTE_USER $remote_user;
            fastcgi_pass unix:{home}/cgi.sock;
        }}
    }}
}}
"""
    )
    command = f"fcgiwrap -s unix:{home}/cgi.sock & exec nginx -p {home} -c {config}"
    return Service("git server", ["bash", "-c", command], directory, f"http://{GIT_URL[8:]}")


def balancer(directory: Path, port: int, servers: list[int]) -> Service:
    """The load balancer of docker/nginx.conf, before servers at these ports of 127.0.0.1."""
    home = directory / "balancer"
    home.mkdir()
    text = NGINX.read_text()
    for old, new in [
        *zip(SERVERS, [f"server 127.0.0.1:{each}" for each in servers], strict=True),
        (LISTEN, f"listen {ADDRESS}:{port};"),
    ]:
        assert text.count(old) == 1, f"docker/nginx.conf has no {old!r}"
        text = text.replace(old, new)
    config = home / "nginx.conf"
    config.write_text(text)
    command = ["nginx", "-p", str(home), "-c", str(config), "-g", "daemon off; user root;"]
    return Service("balancer", command, directory, f"http://{ADDRESS}:{port}/")
