"""The example flows, as plain functions."""

import csv
import gzip
import sqlite3
from pathlib import Path

import pytest

from deployments.testing import ROOT
from flows.airport_delays import AirportDelays, WorstCarrier, airport_delays
from flows.delay_report import summarize, to_markdown
from flows.flight_delays import flight_delays

FLIGHTS = ROOT / "data" / "flights"
HEADER = "year,month,day,carrier,flight,dest,dep_delay,arr_delay"


def write(directory: Path, lines: list[str], airport: str = "XYZ") -> str:
    with gzip.open(directory / f"{airport}.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return str(directory)


def delays_of(airport: str, mean: float | None, departures: int = 10) -> AirportDelays:
    return AirportDelays(
        airport=airport,
        month=1,
        flights=departures + 1,
        cancelled=1,
        mean_dep_delay=mean,
        share_delayed=None if mean is None else 0.5,
        worst_carrier=None,
    )


@pytest.fixture(scope="module")
def flights_table() -> sqlite3.Connection:
    """The same data in SQL, to compute the figures another way."""
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE flights (airport, month INTEGER, carrier, delay REAL)")
    for path in FLIGHTS.glob("*.csv.gz"):
        with gzip.open(path, "rt") as file:
            table.executemany(
                "INSERT INTO flights VALUES (?, ?, ?, nullif(?, ''))",
                [
                    (path.name[:3], row["month"], row["carrier"], row["dep_delay"])
                    for row in csv.DictReader(file)
                ],
            )
    return table


@pytest.mark.parametrize("month", [1, 2, 3])
@pytest.mark.parametrize("airport", ["EWR", "JFK", "LGA"])
def test_figures_equal_those_of_sql(
    flights_table: sqlite3.Connection, airport: str, month: int
) -> None:
    expected = flights_table.execute(
        "SELECT count(*), sum(delay IS NULL), round(avg(delay), 2), round(avg(delay >= 15), 4)"
        " FROM flights WHERE airport = ? AND month = ?",
        (airport, month),
    ).fetchone()
    worst = flights_table.execute(
        "SELECT carrier, round(avg(delay), 2) FROM flights WHERE airport = ? AND month = ?"
        " GROUP BY carrier HAVING count(delay) >= 100 ORDER BY avg(delay) DESC LIMIT 1",
        (airport, month),
    ).fetchone()

    delays = airport_delays.fn(airport, month, str(FLIGHTS))

    assert (
        delays.flights,
        delays.cancelled,
        delays.mean_dep_delay,
        delays.share_delayed,
    ) == expected
    assert delays.worst_carrier is not None
    assert (delays.worst_carrier.code, delays.worst_carrier.mean_dep_delay) == worst


def test_known_figures() -> None:
    assert airport_delays.fn("EWR", 1, str(FLIGHTS)) == AirportDelays(
        airport="EWR",
        month=1,
        flights=9893,
        cancelled=238,
        mean_dep_delay=14.91,
        share_delayed=0.2494,
        worst_carrier=WorstCarrier(
            code="EV", name="ExpressJet Airlines Inc.", mean_dep_delay=24.89
        ),
    )


def test_late_is_fifteen_minutes_and_small_carriers_are_not_ranked(tmp_path: Path) -> None:
    rows = [f"2013,7,1,AA,1,LAX,{delay},0" for delay in (14, 15)]
    many = [f"2013,7,1,ZZ,1,LAX,{delay},0" for delay in [1] * 100]
    delays = airport_delays.fn("XYZ", 7, write(tmp_path, [HEADER, *rows, *many]))
    assert delays.share_delayed == round(1 / 102, 4)
    assert delays.worst_carrier == WorstCarrier(code="ZZ", name="ZZ", mean_dep_delay=1)


def test_month_in_which_no_flight_left(tmp_path: Path) -> None:
    delays = airport_delays.fn("XYZ", 7, write(tmp_path, [HEADER, "2013,7,1,AA,1,LAX,,"]))
    assert (delays.flights, delays.cancelled) == (1, 1)
    assert (delays.mean_dep_delay, delays.share_delayed, delays.worst_carrier) == (None,) * 3


def test_unknown_airport_names_the_file_and_what_is_there() -> None:
    with pytest.raises(FileNotFoundError) as error:
        airport_delays.fn("XXX", 1, str(FLIGHTS))
    assert f"{FLIGHTS}/XXX.csv.gz" in str(error.value)
    assert "EWR.csv.gz, JFK.csv.gz, LGA.csv.gz" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "place", "reason"),
    [
        (["year,carrier,dep_delay"], "line 1", "missing column: month"),
        ([HEADER, "2013,1,1,AA,1,LAX,late,0"], "line 2", "'late'"),
        ([HEADER, "2013,1,1,AA,1,LAX,5,0", "2013,one,1,AA,1,LAX,5,0"], "line 3", "'one'"),
        ([HEADER, "2013,2,1,AA,1,LAX,5,0"], "", "no flights in month 1"),
        ([""], "line 1", "missing column"),
    ],
)
def test_bad_file_is_told_with_its_line(
    tmp_path: Path, lines: list[str], place: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        airport_delays.fn("XYZ", 1, write(tmp_path, lines))
    assert str(tmp_path / "XYZ.csv.gz") in str(error.value)
    assert place in str(error.value)


def test_truncated_file_is_told_with_its_line(tmp_path: Path) -> None:
    whole = (FLIGHTS / "EWR.csv.gz").read_bytes()
    (tmp_path / "XYZ.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"XYZ\.csv\.gz, line \d\d+: ") as error:
        airport_delays.fn("XYZ", 12, str(tmp_path))
    assert "end-of-stream" in str(error.value)


def test_file_that_is_not_gzip(tmp_path: Path) -> None:
    (tmp_path / "XYZ.csv.gz").write_text(HEADER)
    with pytest.raises(ValueError, match=r"XYZ\.csv\.gz, line 1: Not a gzipped file"):
        airport_delays.fn("XYZ", 1, str(tmp_path))


def test_report_ranks_the_longest_delay_first_and_totals() -> None:
    report = summarize(
        [delays_of("AAA", 4.0, 30), delays_of("CCC", None, 0), delays_of("BBB", 8.0, 10)]
    )
    assert [airport.airport for airport in report.ranking] == ["BBB", "AAA", "CCC"]
    assert (report.flights, report.cancelled) == (43, 3)
    assert report.mean_dep_delay == 5.0  # weighted by departures
    assert report.share_delayed == 0.5


def test_report_refuses_different_months() -> None:
    other = delays_of("BBB", 1.0).model_copy(update={"month": 2})
    with pytest.raises(ValueError, match=r"not of months \[1, 2\]"):
        summarize([delays_of("AAA", 1.0), other])


def test_markdown_is_a_table() -> None:
    ewr = airport_delays.fn("EWR", 1, str(FLIGHTS))
    lines = to_markdown(summarize([ewr])).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| 1 | EWR | 9,893 | 238 | 14.9 min | 24.9% |" in table[2]


def test_the_run_form_shows_typed_fields_with_descriptions() -> None:
    fields = flight_delays.parameters.properties
    assert set(fields) == {"airports", "month", "data_dir"}
    assert all(field.get("description") for field in fields.values())
    assert (fields["month"]["minimum"], fields["month"]["maximum"]) == (1, 12)
    assert fields["airports"]["default"] == ["EWR", "JFK", "LGA"]
