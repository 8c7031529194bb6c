"""A child: the departure delays of one airport in one month."""

import csv
import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, Field

AIRLINES = Path(__file__).resolve().parents[1] / "data" / "airlines.csv"
COLUMNS = {"month", "carrier", "dep_delay"}
LATE_MINUTES = 15  # the US Department of Transportation's definition of late
CARRIER_DEPARTURES = 100  # a carrier with fewer is not ranked

Airport = Annotated[str, Field(pattern="^[A-Z]{3}$")]  # an IATA code
Month = Annotated[int, Field(ge=1, le=12)]


class WorstCarrier(BaseModel):
    """The carrier with the highest mean delay."""

    code: str
    name: str
    mean_dep_delay: float = Field(description="Minutes")


class AirportDelays(BaseModel):
    """How late the flights of one airport left in one month."""

    airport: Airport
    month: Month
    flights: int = Field(description="Scheduled departures")
    cancelled: int = Field(description="Flights that never left")
    mean_dep_delay: float | None = Field(description="Minutes, over flights that left")
    share_delayed: float | None = Field(
        description=f"Share of flights that left {LATE_MINUTES} minutes late or more"
    )
    worst_carrier: WorstCarrier | None = Field(
        description=f"Among carriers with at least {CARRIER_DEPARTURES} departures"
    )


@flow(flow_run_name="{airport} 2013-{month:02d}")
def airport_delays(airport: Airport, month: Month, data_dir: str = "data/flights") -> AirportDelays:
    """Measure the departure delays of one airport in one month.

    Args:
        airport: IATA code, such as EWR.
        month: Month of the year 2013, 1 to 12; the sample data has 1 to 3.
        data_dir: Directory with one AIRPORT.csv.gz per airport, from the checkout.
    """
    path = Path(data_dir) / f"{airport}.csv.gz"
    flights, by_carrier = 0, defaultdict[str, list[float]](list)
    for carrier, delay in read_departures(path, month):
        flights += 1
        if delay is not None:
            by_carrier[carrier].append(delay)
    if not flights:
        raise ValueError(f"{path} has no flights in month {month}")

    delays = [delay for carrier_delays in by_carrier.values() for delay in carrier_delays]
    late = sum(delay >= LATE_MINUTES for delay in delays)
    return AirportDelays(
        airport=airport,
        month=month,
        flights=flights,
        cancelled=flights - len(delays),
        mean_dep_delay=round(fmean(delays), 2) if delays else None,
        share_delayed=round(late / len(delays), 4) if delays else None,
        worst_carrier=find_worst(by_carrier),
    )


def find_worst(by_carrier: dict[str, list[float]]) -> WorstCarrier | None:
    """Return the carrier with the highest mean delay, of those with enough departures."""
    means = {
        carrier: fmean(delays)
        for carrier, delays in by_carrier.items()
        if len(delays) >= CARRIER_DEPARTURES
    }
    if not means:
        return None
    code = max(means, key=means.__getitem__)
    with AIRLINES.open(newline="", encoding="utf-8") as file:
        names = {row["carrier"]: row["name"] for row in csv.DictReader(file)}
    return WorstCarrier(code=code, name=names.get(code, code), mean_dep_delay=round(means[code], 2))


def read_departures(path: Path, month: int) -> Iterator[tuple[str, float | None]]:
    """Yield carrier and delay in minutes (None: cancelled) of each flight of a month."""
    line = 0
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            line = 1
            if missing := COLUMNS - set(rows.fieldnames or ()):
                raise ValueError(f"missing column: {', '.join(sorted(missing))}")
            for row in rows:
                line = rows.line_num
                if int(row["month"]) == month:
                    delay = row["dep_delay"]
                    yield row["carrier"], float(delay) if delay else None
                line += 1  # the line to blame if the next one can't be read
    except FileNotFoundError:
        there = sorted(file.name for file in path.parent.glob("*.csv.gz"))
        raise FileNotFoundError(
            f"{path} does not exist; in {path.parent}: {', '.join(there) or 'no *.csv.gz'}"
        ) from None
    except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path}, line {max(line, 1)}: {error}") from error


if __name__ == "__main__":
    print(airport_delays("EWR", 1).model_dump_json(indent=2))  # noqa: T201
