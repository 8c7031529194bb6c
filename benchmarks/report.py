"""The figures of a benchmark as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import leather  # type: ignore[import-untyped]
from rich.table import Table

# What one parent took.
Measured = dict[str, Any]
# By what was measured, whose it is, and the number of children.
Figures = dict[str, dict[str, dict[int, Measured]]]

# What was measured, how the table calls it, its figure, and how that is written.
ROWS = [
    ("create", "create {} children", "seconds", "{:.1f} s"),
    ("create", "  lost, of {}", "lost", "{}"),
    ("wait", "requests per child, {} children", "requests_per_child", "{:.1f}"),
    ("idle", "requests per second of waiting for {}", "idle_requests_per_second", "{:.2f}"),
    ("wait", "child's end to parent going on, p50 of {}", "delay_p50", "{:.2f} s"),
    ("wait", "  p95 of {}", "delay_p95", "{:.2f} s"),
    ("real", "{} children in processes", "seconds", "{:.1f} s"),
    ("real", "  CPU time of their processes", "cpu_children", "{:.1f} s"),
    ("real", "  CPU time of their worker", "cpu_worker", "{:.1f} s"),
    ("real", "  CPU time of the server", "cpu_server", "{:.1f} s"),
    ("memory", "memory of {} run", "run", "{:.0f} MB"),
    ("memory", "  that it shares with nobody", "run_alone", "{:.0f} MB"),
    ("memory", "memory of the warm process", "warm", "{:.0f} MB"),
    ("wait", "time per child, {} simulated children", "seconds_per_child", "{:.3f} s"),
    ("wait", "  the parent's memory", "megabytes", "{:.0f} MB"),
    ("cancel", "cancelled parent to last of {} children final", "seconds", "{:.1f} s"),
]


def tabulate(figures: Figures) -> Table:
    """Put the plain pattern and ours side by side, and ours without the warm process."""
    table = Table("")
    for title in ("plain run_deployment", "cold", "this template", "times"):
        table.add_column(title, justify="right")
    for what, label, key, written in ROWS:
        sides = figures.get(what, {})
        for children in sorted({count for side in sides.values() for count in side}):
            plain, cold, ours = [
                sides.get(side, {}).get(children, {}) for side in ("plain", "cold", "ours")
            ]
            table.add_row(
                label.format(children),
                *(_write(figure, key, written) for figure in (plain, cold, ours)),
                _ratio(plain, ours, key),
            )
    return table


def _write(figure: Measured, key: str, written: str) -> str:
    if "over" in figure:
        return f"over {figure['over']:.0f} s"
    value = figure.get(key)
    if value is None:
        return str(figure.get("failed", ""))
    return written.format(value)


def _ratio(plain: Measured, ours: Measured, key: str) -> str:
    left, right = plain.get(key, plain.get("over")), ours.get(key)
    if not (isinstance(left, float) and isinstance(right, float) and right):
        return ""
    return f"{'over ' if 'over' in plain else ''}{left / right:.1f}"


def plot(figures: Figures, path: Path) -> None:
    """Draw the time to create children against their number."""
    chart = leather.Chart("Creating child runs: seconds, by their number")
    for side, name in (("plain", "plain run_deployment"), ("ours", "this template")):
        measured = figures["create"].get(side, {})
        points = [
            (children, figure.get("seconds", figure.get("over")))
            for children, figure in sorted(measured.items())
        ]
        chart.add_line([(0, 0), *points], name=name)
    chart.add_x_axis(name="children")
    chart.add_y_axis(name="seconds")
    chart.to_svg(str(path))
