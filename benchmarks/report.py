"""The figures of a benchmark as a table and as a plot."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import leather  # type: ignore[import-untyped]
import prefect
from rich.table import Table

HERE = Path(__file__).parent

# What one parent took.
Measured = dict[str, Any]
# By what was measured, whose it is, and the number of children.
Figures = dict[str, dict[str, dict[int, Measured]]]

# How children start: as Prefect does by default, as subflows in the parent's process, in a new
# interpreter each, and as forks of the warm process.
SIDES = ("plain", "in process", "cold", "ours")
# For the parts of a child's time.
COLORS = ("#8da0cb", "#b3b3b3", "#ffd92f", "#fc8d62", "#66c2a5", "#e78ac3")

# What was measured, how the table calls it, its figure, and how that is written.
ROWS = [
    ("create", "create {} children", "seconds", "{:.1f} s"),
    ("create", "  lost, of {}", "lost", "{}"),
    ("wait", "requests per child, {} children", "requests_per_child", "{:.1f}"),
    ("idle", "requests per second of waiting for {}", "idle_requests_per_second", "{:.2f}"),
    ("wait", "child's end to parent going on, p50 of {}", "delay_p50", "{:.2f} s"),
    ("wait", "  p95 of {}", "delay_p95", "{:.2f} s"),
    ("real", "{} real children", "seconds", "{:.1f} s"),
    ("real", "  CPU time of the processes of {}", "cpu_children", "{:.1f} s"),
    ("real", "  CPU time of the worker of {}", "cpu_worker", "{:.1f} s"),
    ("real", "  CPU time of the parent of {}", "cpu_parent", "{:.1f} s"),
    ("real", "  CPU time of the server for {}", "cpu_server", "{:.1f} s"),
    ("memory", "memory of {} run", "run", "{:.0f} MB"),
    ("memory", "  that it shares with nobody", "run_alone", "{:.0f} MB"),
    ("memory", "memory of the warm process", "warm", "{:.0f} MB"),
    ("wait", "time per child, {} simulated children", "seconds_per_child", "{:.3f} s"),
    ("wait", "  the parent's memory", "megabytes", "{:.0f} MB"),
    ("cancel", "cancelled parent to last of {} children final", "seconds", "{:.1f} s"),
]


def name_of(database: str | None, redis: str | None) -> str:
    """Return what the files call a server."""
    return "-".join(["postgres" if database else "sqlite", *(["redis"] if redis else [])])


def save(figures: dict[str, Any], name: str, **more: Any) -> None:
    """Write figures beside this file, and what they depend on."""
    about = {
        "date": str(datetime.now(UTC).date()),
        "prefect": prefect.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    (HERE / f"{name}.json").write_text(json.dumps(about | more | figures, indent=1) + "\n")


def tabulate(figures: Figures) -> Table:
    """Put the plain pattern, subflows and ours side by side, and ours without the warm process."""
    table = Table("")
    for title in (*SIDES, "times"):
        table.add_column(title, justify="right")
    for what, label, key, written in ROWS:
        sides = figures.get(what, {})
        for children in sorted({count for side in sides.values() for count in side}):
            measured = [sides.get(side, {}).get(children, {}) for side in SIDES]
            table.add_row(
                label.format(children),
                *(_write(figure, key, written) for figure in measured),
                _ratio(measured[0], measured[-1], key),
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


def plot_parts(figures: Figures, path: Path) -> None:
    """Draw what a child's time is made of: a stacked bar for each number of them and each side.

    By hand, since leather stacks nothing.
    """
    real = figures["real"]
    bars = [
        (f"{children} children, {side}", real[side][children]["parts"])
        for children in sorted({count for side in real.values() for count in side})
        for side in real
        if "parts" in real[side].get(children, {})
    ]
    scale = 540 / max(sum(parts.values()) for _, parts in bars)
    shapes = [_text(20, 30, "Seconds of a child, from its call until the parent goes on: the mean")]
    for index, (part, color) in enumerate(zip(bars[0][1], COLORS, strict=True)):
        left, y = 20 + index % 3 * 260, 45 + index // 3 * 20
        shapes += [_box(left, y, 12, 12, color), _text(left + 18, y + 11, part)]
    for row, (label, parts) in enumerate(bars):
        x, y = 190.0, 100 + row * 30
        shapes.append(_text(20, y + 15, label))
        for seconds, color in zip(parts.values(), COLORS, strict=True):
            shapes.append(_box(x, y, width := seconds * scale, 22, color))
            if width > 34:
                shapes.append(_text(x + 4, y + 15, f"{seconds:.1f}"))
            x += width
        shapes.append(_text(x + 6, y + 15, f"{sum(parts.values()):.1f} s"))
    height = 110 + len(bars) * 30
    background = _box(0, 0, 800, height, "#f9f9f9")  # also where the page is dark
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height}">\n'
        + "\n".join([background, *shapes, "</svg>\n"])
    )


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{color}"/>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" font-family="sans-serif" font-size="13">{text}</text>'
