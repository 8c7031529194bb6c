"""A parent: one child run per airport, side by side, then one report over all of them."""

import asyncio
from typing import Annotated

from pydantic import Field

from deployments import child, parent_flow
from flows.airport_delays import Airport, Month, airport_delays
from flows.delay_report import DelayReport, delay_report


@parent_flow(flow_run_name="delays 2013-{month:02d}")
async def flight_delays(
    airports: Annotated[list[Airport], Field(min_length=1)] = ["EWR", "JFK", "LGA"],
    month: Month = 1,
    data_dir: str = "data/flights",
) -> DelayReport:
    """Compare the departure delays of airports in one month.

    Args:
        airports: IATA codes; each is a child run of its own.
        month: Month of the year 2013, 1 to 12; the sample data has 1 to 3.
        data_dir: Directory with one AIRPORT.csv.gz per airport, from the checkout.
    """
    delays = await asyncio.gather(
        *(child(airport_delays)(airport, month, data_dir) for airport in airports)
    )
    return await child(delay_report)(delays)
