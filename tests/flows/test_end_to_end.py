"""The example's parent as a deployment, on a real server with a real worker."""

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.deployments import arun_deployment

from flows.delay_report import DelayReport
from tests.engine.waiting import children_of, read_graph


@pytest.mark.anyio
async def test_the_parent_reports_on_its_airports(worker: object) -> None:
    parent = await arun_deployment("flight-delays/local", timeout=300, poll_interval=0.5)
    async with get_client() as client:
        children = {run.name: run for run in await children_of(client, parent)}
        graph = await read_graph(client, parent)
        (artifact,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["delay-report"]))
        )

    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    report = DelayReport.model_validate(await parent.state.aresult())
    assert [(row.airport, row.flights, row.cancelled) for row in report.ranking] == [
        ("EWR", 9893, 238),
        ("JFK", 9161, 100),
        ("LGA", 7950, 183),
    ]

    # The run graph draws an arrow from each airport's run to the report's.
    report_run = children.pop("report 2013-01")
    assert set(children) == {"EWR 2013-01", "JFK 2013-01", "LGA 2013-01"}
    assert graph[report_run.id] == {run.id for run in children.values()}

    assert artifact.flow_run_id == report_run.id
    assert "| 1 | EWR | 9,893 |" in str(artifact.data)
