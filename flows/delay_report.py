"""A child that fans in: one report from the delays of many airports."""

from statistics import fmean
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, Field

from flows.airport_delays import LATE_MINUTES, AirportDelays, Month


class DelayReport(BaseModel):
    """The airports of one month, the one with the longest delays first."""

    month: Month
    ranking: list[AirportDelays]
    flights: int = Field(description="Scheduled departures of all airports")
    cancelled: int = Field(description="Flights that never left")
    mean_dep_delay: float | None = Field(description="Minutes, over all flights that left")
    share_delayed: float | None = Field(
        description=f"Share of all flights that left {LATE_MINUTES} minutes late or more"
    )


@flow(flow_run_name="report 2013-{delays[0].month:02d}")
def delay_report(delays: Annotated[list[AirportDelays], Field(min_length=1)]) -> DelayReport:
    """Rank airports by mean delay, and publish the ranking as an artifact.

    Args:
        delays: The delays of each airport, all of the same month.
    """
    report = summarize(delays)
    create_markdown_artifact(
        key="delay-report",
        markdown=to_markdown(report),
        description=f"Departure delays, 2013-{report.month:02d}",
    )
    return report


def summarize(delays: list[AirportDelays]) -> DelayReport:
    """Rank airports, and add them up."""
    if len(months := {airport.month for airport in delays}) > 1:
        raise ValueError(f"delays of one month are needed, not of months {sorted(months)}")
    return DelayReport(
        month=delays[0].month,
        ranking=sorted(delays, key=rank),
        flights=sum(airport.flights for airport in delays),
        cancelled=sum(airport.cancelled for airport in delays),
        mean_dep_delay=mean_over_departures(delays, "mean_dep_delay", digits=2),
        share_delayed=mean_over_departures(delays, "share_delayed", digits=4),
    )


def rank(delays: AirportDelays) -> tuple[float, str]:
    """Sort the longest mean delay first, and airports without departures last."""
    mean = delays.mean_dep_delay
    return (float("inf") if mean is None else -mean, delays.airport)


def mean_over_departures(delays: list[AirportDelays], field: str, digits: int) -> float | None:
    """Average a field of all airports, each weighted by the flights that left."""
    left = [airport.flights - airport.cancelled for airport in delays]
    values = [getattr(airport, field) or 0 for airport in delays]
    return round(fmean(values, weights=left), digits) if any(left) else None


def to_markdown(report: DelayReport) -> str:
    """Render the ranking as a Markdown table."""
    lines = [
        "| # | Airport | Flights | Cancelled | Mean delay | Late flights | Worst carrier |",
        "|--:|:--------|--------:|----------:|-----------:|-------------:|:--------------|",
    ]
    for place, airport in enumerate(report.ranking, start=1):
        worst = airport.worst_carrier
        carrier = f"{worst.name} ({minutes(worst.mean_dep_delay)})" if worst else "n/a"
        lines.append(
            f"| {place} | {airport.airport} | {airport.flights:,} | {airport.cancelled:,} "
            f"| {minutes(airport.mean_dep_delay)} | {percent(airport.share_delayed)} | {carrier} |"
        )
    lines.append(
        f"| | **all** | **{report.flights:,}** | **{report.cancelled:,}** "
        f"| **{minutes(report.mean_dep_delay)}** | **{percent(report.share_delayed)}** | |"
    )
    return "\n".join(lines)


def minutes(value: float | None) -> str:
    """Write a delay for people."""
    return "n/a" if value is None else f"{value:.1f} min"


def percent(share: float | None) -> str:
    """Write a share for people."""
    return "n/a" if share is None else f"{share:.1%}"
