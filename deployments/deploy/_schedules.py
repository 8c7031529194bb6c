"""Schedules: as prefect.yaml declares them, and as a server has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import SCHEDULE_TYPES, IntervalSchedule, RRuleSchedule
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter, ValidationError

Declared = dict[str, Any]
TIMES = ("cron", "day_or", "interval", "anchor_date", "rrule", "timezone")


def is_paused(declared: Declared, there: Sequence[DeploymentSchedule]) -> bool:
    """Tell whether somebody has paused a schedule on the server, and prefect.yaml leaves it so.

    Args:
        declared: The schedule.
        there: Those that its deployment has on the server.
    """
    if declared.get("active") is not None:
        return False
    wanted = _read_times(declared)
    same = [each for each in there if wanted and _is_same(wanted, each.schedule)]
    # The UI forgets the parameters of what it pauses.
    running = [each.parameters for each in same if each.active]
    return len(running) < len(same) and (declared.get("parameters") or {}) not in running


def plain_schedules(
    there: Sequence[DeploymentSchedule], declared: Sequence[Declared]
) -> list[Declared]:
    """Return what schedules say, in an order of their own.

    That is without their `anchor_date` where it is not declared: each deploy sets it anew.
    """
    anchors = [getattr(_read_times(each), "anchor_date", None) for each in declared]
    found = []
    for each in there:
        times = each.schedule.model_dump()
        if times.get("anchor_date") not in anchors:
            times.pop("anchor_date", None)
        found.append(times | each.model_dump(include={"active", "parameters", "slug"}))
    return sorted(found, key=repr)


def _read_times(declared: Declared) -> SCHEDULE_TYPES | None:
    """Return when a schedule starts runs; None where that is no more than a placeholder."""
    given = {key: declared[key] for key in TIMES if declared.get(key) is not None}
    try:
        times: SCHEDULE_TYPES = TypeAdapter(SCHEDULE_TYPES).validate_python(
            apply_values(given, dict(os.environ), remove_notset=False)
        )
    except ValidationError:
        return None
    return times


def _is_same(wanted: SCHEDULE_TYPES, there: SCHEDULE_TYPES) -> bool:
    if isinstance(wanted, RRuleSchedule) and isinstance(there, RRuleSchedule):
        # Where it has no DTSTART, the server puts one before it.
        return there.rrule.endswith(wanted.rrule) and there.timezone == wanted.timezone
    if isinstance(wanted, IntervalSchedule) and isinstance(there, IntervalSchedule):
        return (there.interval, there.timezone) == (wanted.interval, wanted.timezone)
    return there == wanted
