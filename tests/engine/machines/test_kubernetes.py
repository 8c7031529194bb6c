"""The jobs of docs/kubernetes.md, as a worker would send them."""

import asyncio
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun

from deployments.project import ROOT
from deployments.servers import TemporaryServer, temporary_server
from tests.engine.conftest import inner_env, replace, run_command
from tests.engine.test_recipes import Engine, serving

pytestmark = [pytest.mark.anyio, pytest.mark.machines]

PAGE = (ROOT / "deployments" / "docs" / "kubernetes.md").read_text()
POOL, _ = (
    textwrap.dedent(block).replace("<name>", "engine-tests")
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
)
NAME = "registry.example.com/team/acme"  # of the image
# Of a worker of the chart, which sets no PREFECT_HOME or the like: it would hand it on.
WORKER = {
    "PREFECT_WORKER_PREFETCH_SECONDS": "10",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_API_ENABLE_HTTP2": "true",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": "flows",
}
RENDER = """
import asyncio, json, sys
from types import SimpleNamespace

from kubernetes_asyncio.client import ApiClient
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration


async def render(run_id: str) -> dict:
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
        configuration = await KubernetesWorkerJobConfiguration.resolve_for_flow_run(
            run,
            client=client,
            work_pool=await client.read_work_pool(run.work_pool_name),
            worker_name="in the cluster",
        )
    sent = configuration.job_manifest
    async with ApiClient() as kubernetes:
        job = kubernetes.deserialize(SimpleNamespace(data=json.dumps(sent)), "V1Job")
        known = kubernetes.sanitize_for_serialization(job)
    return {"namespace": configuration.namespace, "sent": sent, "known": known}


print(json.dumps(asyncio.run(render(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def for_kubernetes(checkout: Path) -> Path:
    """Put the work pool of that page into the place of that of Docker."""
    manifest = checkout / "prefect.yaml"
    first = POOL.splitlines()[0]
    found = re.search(rf"^( +){first}\n(\1 +.*\n)+", manifest.read_text(), re.MULTILINE)
    assert found, first
    replace(manifest, found[0], textwrap.indent(POOL, found[1]))
    return checkout


def test_check_finds_nothing_wrong(for_kubernetes: Path, clean_env: dict[str, str]) -> None:
    told = run_command(["check"], for_kubernetes, clean_env)
    assert told.returncode == 0, told.stderr


@dataclass
class Cluster:
    """A server that the project's deployments named `docker` are on.

    Attributes:
        server: Which has a pool of Kubernetes of that name, and so is not the session's.
        env: The environment of the project's commands.
        image: That was built.
    """

    server: TemporaryServer
    project: Path
    env: dict[str, str]
    image: str

    def deploy(self) -> list[str]:
        done = run_command(["deploy", "docker"], self.project, self.env)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()


@pytest.fixture(scope="module")
def cluster(for_kubernetes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Deploy the project. Docker's Engine and command are stand-ins."""
    path = tmp_path_factory.mktemp("cluster")
    (path / "docker").write_text("#!/bin/sh\n")
    (path / "docker").chmod(0o755)
    git = "git -c user.name=ci -c user.email=ci@example.com"
    commands = f"git init -q && git add -A && {git} commit -qm 'To deploy'"
    subprocess.run(commands, cwd=for_kubernetes, shell=True, check=True)  # noqa: S602
    tag = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=for_kubernetes,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with temporary_server(path) as server, serving(Engine) as port, server.used():
        env = {
            **server.env,
            "IMAGE_NAME": NAME,
            "DOCKER_HOST": f"tcp://127.0.0.1:{port}",
            "PATH": f"{path}:{os.environ['PATH']}",
        }
        cluster = Cluster(server, for_kubernetes, env, f"{NAME}:{tag}")
        cluster.deploy()
        yield cluster


async def render(cluster: Cluster, python: Path) -> tuple[FlowRun, dict[str, Any]]:
    """Create a run, and return it with the job that a worker in a cluster would send."""
    home = str(cluster.server.home)
    async with get_client() as client:
        there = await client.read_deployment_by_name("measure-all/docker")
        run = await client.create_flow_run_from_deployment(there.id)
    done = await asyncio.to_thread(
        subprocess.run,
        [str(python), "-c", RENDER, str(run.id)],
        cwd="/",
        env={**inner_env(), **WORKER, "HOME": home, "PREFECT_API_URL": cluster.server.api_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rendered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run, rendered


async def test_the_job_of_a_run(cluster: Cluster, extras_python: Path) -> None:
    run, rendered = await render(cluster, extras_python)
    job = rendered["sent"]
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]

    assert job["metadata"]["namespace"] == rendered["namespace"] == "flows"
    assert job["metadata"]["generateName"] == f"measure-all-{run.name}-"
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600
    for labels in (job["metadata"]["labels"], pod["metadata"]["labels"]):
        assert labels["prefect.io/flow-run-id"] == str(run.id)
        assert labels["prefect.io/flow-run-name"] == run.name
        assert labels["prefect.io/deployment-name"] == "docker"
        assert labels["prefect.io/work-pool-name"] == "engine-tests-docker"

    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["serviceAccountName"] == "flows"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["spec"]["shareProcessNamespace"] is True
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(re.findall(r"useradd .*--uid (\d+) flows", dockerfile)[0]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }

    assert container["image"] == cluster.image
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["envFrom"] == [{"secretRef": {"name": "flows"}}]
    assert container["resources"] == {
        "requests": {"cpu": "250m", "memory": "512Mi"},
        "limits": {"memory": "1Gi"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    env = {each["name"]: each["value"] for each in container["env"]}
    assert env["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] == "s3-bucket/results"
    assert env["PREFECT_API_URL"] == cluster.server.api_url
    assert env["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert not {"PREFECT_HOME", "PREFECT_PROFILES_PATH"} & set(env)
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in env


async def test_kubernetes_knows_each_field(cluster: Cluster, extras_python: Path) -> None:
    _, rendered = await render(cluster, extras_python)
    job = rendered["sent"]
    for name in ("parallelism", "completions"):  # Prefect's own: Kubernetes ignores them there
        del job["spec"]["template"]["spec"][name]
    assert rendered["known"] == job


async def test_a_change_of_the_template_is_deployed(cluster: Cluster, extras_python: Path) -> None:
    unchanged = cluster.deploy()
    assert "unchanged: work pool engine-tests-docker" in unchanged
    manifest = cluster.project / "prefect.yaml"
    replace(manifest, "imagePullSecrets: [{name: registry}]", "priorityClassName: low")
    assert "changed: work pool engine-tests-docker: base job template" in cluster.deploy()
    _, rendered = await render(cluster, extras_python)
    pod = rendered["sent"]["spec"]["template"]["spec"]
    assert (pod["priorityClassName"], "imagePullSecrets" in pod) == ("low", False)
