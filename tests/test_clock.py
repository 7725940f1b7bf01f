"""Times by the clock become hours, or are refused where they may be misread."""

import datetime
from pathlib import Path

import pandas as pd
import pytest
from texts import Reader, reader, values

from ampost.errors import TableError

STAMPS = "time,P\n2026-03-01 09:30,1\n2026-03-01 10:00,2\n2026-03-02 09:30,3\n"


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


# ------------------------------------------------------------------------------------------- clock


def test_stamps_become_hours_since_the_first_row_of_each_experiment(read: Reader) -> None:
    said: list[str] = []
    record = read(STAMPS, said=said)
    assert record.times.tolist() == [[0.0, 0.5, 24.0]]
    assert record.units["time"] == "h"
    assert "hours since the first row of each experiment (2026-03-01 09:30)" in said[0]
    two = (
        "well,time,P\nA,2026-03-01 09:00,1\nA,2026-03-01 10:00,2\nB,2026-03-04 09:00,1\nB,2026-03-04 09:15,2\n"
    )
    assert read(two).times.tolist() == [[0.0, 1.0], [0.0, 0.25]]


@pytest.mark.parametrize(
    ("first", "second", "hours"),
    [
        ("09:30", "09:45:36", 0.26),
        ("2026-03-01T09:30Z", "2026-03-01T11:30+01:00", 1.0),
        ("01.03.2026 09:30", "02.03.2026 09:30", 24.0),
        ("13/03/2026 09:30", "14/03/2026 09:30", 24.0),
        ("03/13/2026 09:30", "03/14/2026 09:30", 24.0),
        ("2026-03-01", "2026-03-03", 48.0),
        ("9:30 AM", "1:30 pm", 4.0),
        ("23:30", "00:30", 1.0),
    ],
)
def test_stamps_in_several_forms(read: Reader, first: str, second: str, hours: float) -> None:
    assert read(f"time;P\n{first};1\n{second};2\n").times.tolist() == [[0.0, hours]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("03/04/2026 09:30,1\n04/04/2026 10:30,2\n", "row 2: time is '03/04/2026 09:30', whose day and month"),
        ("13/04/2026,1\n04/14/2026,2\n", "row 3: time is '04/14/2026', whose day and month"),
        ("01.03.26 09:30,1\n02.03.26 10:30,2\n", "row 2: time is '01.03.26 09:30', which is no time"),
        ("2026-03-01 09:30,1\n10:30,2\n", "row 3: time is '10:30'; some times have a date"),
        ("09:30,1\n25:30,2\n", "row 3: time is '25:30', which is no time"),
        ("09:30,1\n1.5,2\n", "row 3: time is '1.5', which is no time"),
    ],
)
def test_stamps_that_may_be_misread_are_refused(read: Reader, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read("time,P\n" + text)


def test_hours_since_a_start_for_all_or_by_experiment(read: Reader) -> None:
    assert read(STAMPS, start="2026-03-01 09:00").times.tolist() == [[0.5, 1.0, 24.5]]
    assert read(STAMPS, start=datetime.datetime(2026, 3, 1, 9)).times.tolist() == [[0.5, 1.0, 24.5]]
    wells = "well,time,P\nA,09:00,1\nA,10:00,2\nB,01:00,1\nB,02:00,2\n"
    assert read(wells, start={"A": "08:00", "B": "23:00"}).times.tolist() == [[1.0, 2.0], [2.0, 3.0]]
    with pytest.raises(TableError, match="start= names experiment 'C'"):
        read(wells, start={"A": "08:00", "C": "23:00"})
    with pytest.raises(TableError, match="start= has no time for experiment 'B'"):
        read(wells, start={"A": "08:00"})
    with pytest.raises(TableError, match=r"row 2: time is .*, before the start .*2026-03-01 09:45"):
        read(STAMPS, start="2026-03-01 09:45")
    with pytest.raises(TableError, match="'noon', which is no time by the clock"):
        read(STAMPS, start="noon")
    with pytest.raises(TableError, match=r"the times of assay.csv are numbers"):
        read("time,P\n0,1\n1,2\n", start="09:00")


def test_a_number_as_start_is_where_the_experiments_begin(read: Reader) -> None:
    assert read("time,P\n5,1\n6,2\n", start=5.0).start == 5.0
    with pytest.raises(TableError, match="row 2: time is 4, expected 5 or later"):
        read("time,P\n4,1\n6,2\n", start=5.0)


def test_a_date_column_beside_the_time_of_day(read: Reader) -> None:
    text = "date,time,P\n2026-03-01,23:30,1\n2026-03-02,09:30,2\n2026-03-03,09:30,3\n"
    assert read(text).times.tolist() == [[0.0, 10.0, 34.0]]


def test_a_header_with_minutes_over_a_clock_is_refused(read: Reader) -> None:
    with pytest.raises(TableError, match="read in hours, but its header says 'min'"):
        read("time [min],P\n09:30,1\n10:30,2\n")
    assert read("time [hh:mm],P\n09:30,1\n10:30,2\n").units["time"] == "h"


def test_the_clock_of_the_measurements_holds_for_doses(read: Reader) -> None:
    def doses(*times: str) -> pd.DataFrame:
        return pd.DataFrame({"time": times, "amount": 1.0, "target": "S"})

    record = read(STAMPS, doses=doses("2026-03-01 10:00", "2026-03-01 21:30"))
    assert record.doses.time.tolist() == [[0.5, 12.0]]
    with pytest.raises(TableError, match=r"doses, row 2: .* before the start .* start='2026-03-01 09:00'"):
        read(STAMPS, doses=doses("2026-03-01 09:00"))
    daily = "time,P\n09:30,1\n10:30,2\n"
    assert read(daily, doses=doses("10:00", "22:00", "10:00")).doses.time.tolist() == [[0.5, 12.5, 24.5]]
    with pytest.raises(TableError, match=r"doses, row 2: .* before the start"):
        read(daily, doses=doses("09:00"))
    assert read(daily, doses=doses("09:00"), start="09:00").doses.time.tolist() == [[0.0]]
    with pytest.raises(TableError, match="doses has times by the clock, the measurements have numbers"):
        read("time,P\n0,1\n1,2\n", doses=doses("09:00"))


def test_times_of_day_roll_over_within_each_observable(read: Reader) -> None:
    said: list[str] = []
    rows = "P,22:00,1\nP,23:00,2\nP,01:00,3\nX,22:00,1\nX,02:00,2\n"
    record = read("observable,time,value\n" + rows, said=said)
    assert record.times.tolist() == [[0.0, 1.0, 3.0, 4.0]]
    assert "over midnight at row 4, 6" in said[0]


@pytest.mark.parametrize(
    "text",
    [
        "replicate,time,P\n1,10:00,1\n1,11:00,2\n2,10:00,3\n2,11:00,4\n",
        "replicate,observable,time,value\n1,P,10:00,1\n1,P,11:00,2\n2,P,10:00,3\n2,P,11:00,4\n",
        "replicate,time,P\n1,10:00,1\n2,10:00,3\n1,11:00,2\n2,11:00,4\n",
    ],
)
def test_times_of_day_roll_over_within_each_replicate(read: Reader, text: str) -> None:
    record = read(text)
    assert record.times.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert values(record) == [1.0, 3.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            "10:00 09:00 11:00",
            "row 3: time is '09:00' after 10:00, which may be 23 h later, over midnight, or rows",
        ),
        (
            "10:00 11:00 10:00 11:00",
            "row 4: time is '10:00' after 11:00, .* tell experiments and replicates apart",
        ),
        (
            "08:00 16:00 08:00",
            "row 4: .* which may be 16 h later, .* or give dates: write it as 2026-03-31 09:30",
        ),
    ],
)
def test_a_step_over_midnight_of_nearly_a_day_is_refused(read: Reader, times: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read("time,P\n" + "".join(f"{time},{k}\n" for k, time in enumerate(times.split())))


def test_a_night_is_a_step_over_midnight(read: Reader) -> None:
    assert read("time,P\n20:00,1\n08:00,2\n20:00,3\n08:00,4\n").times.tolist() == [[0.0, 12.0, 24.0, 36.0]]
    with pytest.raises(TableError, match="row 2: time is '09:30' after 09:45, which may be 23"):
        read("time,P\n09:30,1\n", start="09:45", observables=["P"])
    dated = "time,P\n2026-03-01 16:00,1\n2026-03-02 08:00,2\n2026-03-01 17:00,2\n"
    assert read(dated).times.tolist() == [[0.0, 1.0, 16.0]]
