"""Schedules: as prefect.yaml declares them, and as a server has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter, ValidationError

Declared = dict[str, Any]
TIMES = ("cron", "day_or", "interval", "anchor_date", "rrule", "timezone")


def is_paused(declared: Declared, existing: Sequence[DeploymentSchedule]) -> bool:
    """Tell whether somebody has paused a schedule on the server, and prefect.yaml leaves it so."""
    times = _read_times(declared)
    if declared.get("active") is not None or times is None:
        return False
    same = [schedule for schedule in existing if _is_same(times, schedule.schedule)]
    # The UI forgets the parameters of what it pauses.
    running = [schedule.parameters for schedule in same if schedule.active]
    return len(running) < len(same) and (declared.get("parameters") or {}) not in running


def plain_schedules(
    existing: Sequence[DeploymentSchedule], declared: Sequence[Declared]
) -> list[Declared]:
    """Return what schedules say, in an order of their own.

    That is without their `anchor_date` where it is not declared: each deploy sets it anew.
    """
    anchors = [getattr(_read_times(schedule), "anchor_date", None) for schedule in declared]
    found = []
    for schedule in existing:
        times = schedule.schedule.model_dump()
        if times.get("anchor_date") not in anchors:
            times.pop("anchor_date", None)
        found.append(times | schedule.model_dump(include={"active", "parameters", "slug"}))
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


def _is_same(wanted: SCHEDULE_TYPES, existing: SCHEDULE_TYPES) -> bool:
    ours, theirs = (times.model_dump(exclude={"anchor_date"}) for times in (wanted, existing))
    # The server puts a DTSTART before an RRULE that has none.
    return theirs.pop("rrule", "").endswith(ours.pop("rrule", "")) and ours == theirs
