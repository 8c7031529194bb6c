"""What we use of Prefect beyond its documented API. Where one of these fails after an upgrade,
the module that is named has to follow.
"""

import importlib
import inspect

import pytest
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.concurrency import _leases
from prefect.logging import configuration


@pytest.mark.parametrize(
    ("place", "name", "parameters", "used_by"),
    [
        ("prefect.utilities.engine", "collect_task_run_inputs", ["expr"], "_lineage"),
        (
            "prefect.utilities.engine",
            "link_state_to_flow_run_result",
            ["state", "result"],
            "_lineage",
        ),
        ("prefect.utilities.importtools", "to_qualified_name", ["obj"], "_returns"),
        ("prefect.serializers", "prefect_json_object_decoder", ["result"], "_stored"),
        ("prefect.results", "aresolve_result_storage", ["result_storage"], "_stored"),
        ("prefect.results", "aget_default_result_storage", [], "_stored"),
        ("prefect.results", "get_default_result_serializer", [], "_returns"),
        ("prefect.results", "resolve_serializer", ["serializer"], "_returns"),
        (
            "prefect.workers.utilities",
            "get_default_base_job_template_for_infrastructure_type",
            ["infra_type"],
            "_deploy",
        ),
        ("prefect.utilities.collections", "deep_merge", ["dct", "merge"], "_deploy"),
        ("prefect.utilities.importtools", "import_object", ["import_path"], "_stack"),
        ("prefect.utilities.templating", "apply_values", ["template", "values"], "_stack"),
        ("prefect.context", "refresh_global_settings_context", [], "_warm_process"),
        ("prefect.logging.configuration", "setup_logging", ["incremental"], "_warm_process"),
        ("prefect.logging.handlers", "APILogWorker.drain_all", ["timeout"], "testing"),
        ("prefect.events.worker", "EventsWorker.drain_all", ["timeout"], "testing"),
    ],
)
def test_it_is_still_there(place: str, name: str, parameters: list[str], used_by: str) -> None:
    found = importlib.import_module(place)
    for part in name.split("."):
        found = getattr(found, part)
    missing = set(parameters) - set(inspect.signature(found).parameters)  # type: ignore[arg-type]
    assert not missing, f"{place}.{name} has changed: see {used_by}.py in deployments"


def test_logging_is_set_up_afresh_where_this_is_empty() -> None:
    remembered = getattr(configuration, "PROCESS_LOGGING_CONFIG", None)
    assert isinstance(remembered, dict), "see _warm_process.py in deployments"
    assert "PROCESS_LOGGING_CONFIG" in configuration.setup_logging.__code__.co_names


def test_prefect_deploy_reads_its_file_with_this_model() -> None:
    """`_check.py` asks it what `prefect deploy` would not take."""
    names = _load_deploy_configs_and_actions.__code__.co_names
    assert PrefectYamlModel.__name__ in names, "see _check.py in deployments"


def test_leases_are_renewed_as_often_as_this_says() -> None:
    assert "_RENEWAL_FRACTION" in _leases._lease_renewal_loop.__code__.co_names, (
        "see faults/steps.py"
    )
