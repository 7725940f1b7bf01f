"""NONMEM-style tables -> Experiments: events in rows, with TIME AMT RATE EVID CMT ADDL II MDV CENS LIMIT DV ID.

Each ID is an experiment. What is not supported is refused by name: steady state (SS), resets (EVID 3 and 4)
and rates or durations that are parameters (RATE -1 and -2).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ampost.errors import TableError
from ampost.experiments import INTERVAL, LEFT, RIGHT, Experiments
from ampost.progress import tell
from ampost.reading.accounts import account
from ampost.reading.cells import is_missing
from ampost.reading.entries import Dose, Entries, Key, Measurement
from ampost.reading.headings import Column, Table, named, refuse_doubles, refuse_unknown_keys, shown
from ampost.reading.layouts import numeric, parted
from ampost.reading.measurements import conditions_by, missing_in_words, whole_columns
from ampost.reading.records import record
from ampost.reading.sheets import Source, sheet
from ampost.reading.times import Begin, Times, times_of

ITEMS = ("time", "amt", "rate", "evid", "cmt", "addl", "ii", "mdv", "cens", "limit", "dv", "id", "dvid", "ss")
KNOWN = {name: name for name in (*ITEMS, "date")}
COMPARTMENTS = {1: "depot", 2: "central"}
SEEN, DOSED, OTHER = 0, 1, 2  # EVID
RESETS = {3: "a reset", 4: "a reset with a dose"}
RATES = {-1.0: "a rate that is a parameter", -2.0: "a duration that is a parameter"}
EARLIEST = 1e-9  # times closer than this are the same


@dataclass(frozen=True)
class Event:
    """A row as numbers; NaN where nothing is told. `kind` is its EVID."""

    row: int
    key: Key
    time: float
    kind: int
    items: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.items.get(name, math.nan)

    def number(self, name: str) -> float:
        """An item that is 0 where it is not told."""
        value = self[name]
        return 0.0 if math.isnan(value) else value


def read_nonmem(
    source: Source,
    observable: str | Mapping[int, str] = "concentration",
    compartments: Mapping[int, str] = COMPARTMENTS,
    by: str | bool | None = None,
    say: bool | Callable[[str], object] = True,
    *,
    columns: Mapping[str, str | None] | None = None,
    start: Begin | None = None,
) -> Experiments:
    """Read a NONMEM-style table (CSV, .xlsx, .parquet or DataFrame) and say what was understood.

    ADDL and II are expanded; RATE becomes a duration. CENS 1 is left-censored at DV, or within LIMIT and DV
    where LIMIT is told; CENS -1 is right-censored. Further numeric columns are conditions where they have one
    value in each ID, else covariates. An observation in a row below a dose at the same time comes after it;
    one at the time of a dose that ADDL tells comes before it.

    Args:
        source: the table, one event per row.
        observable: the name of DV; or, by the column DVID, of each of several.
        compartments: the state or event that doses into each CMT go to; without CMT it is 1.
        by: True or "ID" makes each ID a data set; another column makes one of each of its values.
        say: print the account, or hand it to this function.
        columns: their headers to NONMEM's names; None drops one.
        start: as of `ampost.read_table`.

    Raises:
        TableError: what cannot be read or is not supported, by file, row and column.
    """
    read_sheet = sheet(source, "the table")
    refuse_unknown_keys(columns or {}, [read_sheet])
    table = named(read_sheet, columns or {}, KNOWN)
    refuse_doubles(table, ())
    for name in ("id", "time", "dv"):
        table.need(name, ("ID", "TIME", "DV"))
    keys = _keys(table, by)
    times = times_of(table, keys, keys, start)
    _refuse_other_units(table, times.unit)
    events = _events(table, keys, times)
    _refuse_falling(table, events)
    names = _observables(table, events, observable)
    further, said = numeric([c for c in table.columns if c.name not in KNOWN.values()])
    conditions, covariates = parted(table, keys, further)
    seen = _seen_at(events)
    doses = [
        dose
        for event in events
        if event.kind == DOSED
        for dose in _doses(table, event, compartments, seen.get(event.key, []))
    ]
    entries, aside = whole_columns(_measurements(table, events, names, covariates))
    if not entries:
        raise TableError(f"{table.where} has no observation; expected rows with EVID 0 and a DV")
    measured = {m.key for m in entries}
    _refuse_unmeasured(events, measured)
    result = record(
        Entries(
            entries,
            tuple(dict.fromkeys(key for key in keys if key in measured)),
            tuple(dict.fromkeys(m.observable for m in entries)),
            conditions_by(table, keys, conditions),
            tuple(doses),
            units=_units(table, times, [*conditions, *covariates], doses, entries),
            start=float(start) if isinstance(start, (int, float)) else 0.0,
        )
    )
    if say is not False:
        counted = _in_words(table, events)
        head = f"{table.where}: {len(table.rows)} rows, {len(entries)} observations used"
        lines = [head, *table.notes, *times.said, *said, *counted, *aside, *account(result).splitlines()]
        (tell if say is True else say)("\n  ".join(lines))
    return result


def _keys(table: Table, by: str | bool | None) -> list[Key]:
    ids = table.words(table["id"])
    if by is None or by is False:
        return [("1", name) for name in ids]
    if by is True or by.lower() == "id":
        return [(name, name) for name in ids]
    return list(zip(table.words(table.need(by, table.names)), ids, strict=True))


def _units(
    table: Table,
    times: Times,
    columns: Sequence[Column],
    doses: Sequence[Dose],
    entries: Sequence[Measurement],
) -> dict[str, str]:
    """Units that headers tell: of time, DV, AMT and further columns."""
    found = {"time": times.unit} if times.unit else {}
    found |= {c.name: c.unit for c in columns if c.unit}
    if table["dv"].unit:
        found |= dict.fromkeys((m.observable for m in entries), table["dv"].unit)
    if "amt" in table and table["amt"].unit:
        found |= dict.fromkeys((f"dose {d.target}" for d in doses), table["amt"].unit)
    return found


def _refuse_other_units(table: Table, time_unit: str | None) -> None:
    """Raise for a header of II, LIMIT or RATE with another unit than TIME, DV and AMT give it."""
    amount = table["amt"].unit if "amt" in table else None
    rate = f"{amount}/{time_unit}" if amount and time_unit else None
    for name, whose, expected in (
        ("ii", "TIME", time_unit),
        ("limit", "DV", table["dv"].unit),
        ("rate", "AMT and TIME", rate),
    ):
        unit = table[name].unit if name in table else None
        if unit and unit.replace(" ", "") != (expected or "").replace(" ", ""):
            told = f"it is {expected!r}" if expected else "there is none"
            fix = "convert one of them, or spell them alike" if expected else "write them there too"
            raise TableError(
                f"{table.where}: {shown(table[name])} is in {unit!r}, but by the units of {whose} {told}; {fix}"
            )


# ------------------------------------------------------------------------------------------ events


def _events(table: Table, keys: Sequence[Key], times: Times) -> list[Event]:
    held = {name: table.numbers(table[name]) for name in ITEMS if name in table and name not in ("id", "time")}
    events = []
    for i, key in enumerate(keys):
        items = {name: values[i] for name, values in held.items()}
        event = Event(i, key, times.values[i], _kind(table, i, items), items)
        _refuse_unsupported(table, event)
        if math.isnan(event.time) and event.kind != OTHER:
            table.number(table["time"], i, required=True)
        events.append(event)
    return events


def _refuse_falling(table: Table, events: Sequence[Event]) -> None:
    """Raise where TIME falls from one row of an ID to the next."""
    last: dict[Key, float] = {}
    for event in events:
        before = last.get(event.key, -math.inf)
        if event.time < before:
            raise TableError(
                f"{table.at(event.row)}: {shown(table['time'])} is {event.time:g}, but {before:g} in a row of "
                f"ID {event.key[1]!r} above, expected times that do not fall; sort the rows, or give a second "
                f"occasion an ID of its own (resets, EVID 3 and 4, are not supported)"
            )
        if not math.isnan(event.time):
            last[event.key] = event.time


def _kind(table: Table, i: int, items: Mapping[str, float]) -> int:
    """EVID; without it a row with an amount is a dose."""
    amount = items.get("amt", math.nan)
    dosed = not math.isnan(amount) and amount != 0
    told = items.get("evid", math.nan)
    if math.isnan(told):
        return DOSED if dosed else SEEN
    if told in RESETS:
        raise TableError(
            f"{table.at(i)}: EVID={told:g} ({RESETS[int(told)]}) is not supported; give what follows an ID "
            f"of its own, with times from its start"
        )
    if told not in (SEEN, DOSED, OTHER):
        raise TableError(f"{table.at(i)}: EVID is {told:g}, expected 0, 1 or 2; correct it")
    if told == SEEN and dosed:
        raise TableError(
            f"{table.at(i)}: EVID is 0, an observation, but AMT is {amount:g}; correct one of them"
        )
    if told == DOSED and not dosed:
        raise TableError(f"{table.at(i)}: EVID is 1, a dose, but AMT is {'empty' if math.isnan(amount) else 0}")
    return int(told)


def _refuse_unsupported(table: Table, event: Event) -> None:
    at = table.at(event.row)
    if event.number("ss"):
        raise TableError(
            f"{at}: SS={event['ss']:g} (steady state) is not supported; give the doses that lead to it, as "
            f"by ADDL and II, or estimate the state at the start"
        )
    rate = event.number("rate")
    if rate in RATES:
        raise TableError(
            f"{at}: RATE={rate:g} ({RATES[rate]}) is not supported; give the rate, or let the program change "
            f"the durations of experiments.doses"
        )
    if rate < 0:
        raise TableError(f"{at}: RATE is {rate:g}, expected 0 (all at once) or above; correct it")
    if event.number("cens") not in (-1.0, 0.0, 1.0):
        raise TableError(f"{at}: CENS is {event['cens']:g}, expected 0, 1 (left) or -1 (right); correct it")


# ------------------------------------------------------------------------------------------- doses


def _doses(table: Table, event: Event, compartments: Mapping[int, str], seen: Sequence[float]) -> list[Dose]:
    """The dose of a row and those that ADDL and II add to it; `seen` are the times of observations, rising."""
    at = table.at(event.row)
    code = event.number("cmt") or 1.0
    if code not in compartments:
        known = ", ".join(f"{k}: {name!r}" for k, name in compartments.items())
        raise TableError(
            f"{at}: CMT is {code:g}, but the compartments are {{{known}}}; add it to compartments="
        )
    more, interval = event.number("addl"), event.number("ii")
    if more < 0 or not more.is_integer():
        raise TableError(f"{at}: ADDL is {more:g}, expected a number of further doses; correct it")
    if more and interval <= 0:
        raise TableError(f"{at}: ADDL is {more:g}, but II is {interval:g}; add the time between doses")
    amount, rate = event["amt"], event.number("rate")
    duration = amount / rate if rate else 0.0
    target = compartments[int(code)]
    further = [_at_observation(event.time + k * interval, seen) for k in range(1, int(more) + 1)]
    return [Dose(event.key, time, amount, duration, target) for time in (event.time, *further)]


def _seen_at(events: Sequence[Event]) -> dict[Key, list[float]]:
    """The times of each ID's observations, rising as its rows do."""
    found: dict[Key, list[float]] = {}
    for event in events:
        if _is_used(event):
            found.setdefault(event.key, []).append(event.time)
    return found


def _at_observation(time: float, seen: Sequence[float]) -> float:
    """A calculated time, or that of an observation which differs from it by rounding alone."""
    margin = EARLIEST * max(1.0, abs(time))
    place = bisect_left(seen, time - margin)
    return seen[place] if place < len(seen) and seen[place] <= time + margin else time


def _refuse_unmeasured(events: Sequence[Event], measured: set[Key]) -> None:
    """Raise for an ID that has doses and no observation."""
    for event in events:
        if event.kind == DOSED and event.key not in measured:
            raise TableError(
                f"ID {event.key[1]!r} has doses, but no observation; leave its rows out, or add an observation"
            )


# ------------------------------------------------------------------------------------ observations


def _observables(table: Table, events: Sequence[Event], observable: str | Mapping[int, str]) -> list[str]:
    """The observable of each row."""
    if isinstance(observable, str):
        codes = {e["dvid"] for e in events if e.kind == SEEN and not math.isnan(e["dvid"])}
        if len(codes) > 1:
            some = ", ".join(f"{code:g}: 'name'" for code in sorted(codes))
            raise TableError(f"{table.where} has several DVID; name what each is, as in observable={{{some}}}")
        return [observable] * len(events)
    table.need("dvid", ("DVID",))
    names = []
    for event in events:
        code = event["dvid"]
        if event.kind == SEEN and code not in observable:
            known = ", ".join(f"{k}: {name!r}" for k, name in observable.items())
            told = "empty" if math.isnan(code) else f"{code:g}"
            raise TableError(
                f"{table.at(event.row)}: {shown(table['dvid'])} is {told}, but the observables are "
                f"{{{known}}}; add it to observable="
            )
        names.append(observable[int(code)] if event.kind == SEEN else "")
    return names


def _measurements(
    table: Table, events: Sequence[Event], names: Sequence[str], covariates: Sequence[Column]
) -> list[Measurement]:
    values = {c.name: table.numbers(c) for c in covariates}
    dosed: dict[Key, float] = {}  # the time of the last dose in the rows above
    found = []
    for event in events:
        if event.kind == DOSED:
            dosed[event.key] = event.time
        if not _is_used(event):
            continue
        value, upper, censoring = _censored(table, event)
        found.append(
            Measurement(
                key=event.key,
                observable=names[event.row],
                time=event.time,
                value=value,
                place=table.at(event.row),
                censoring=censoring,
                upper=upper,
                after_dose=abs(dosed.get(event.key, -math.inf) - event.time) < EARLIEST,
                columns={name: held[event.row] for name, held in values.items()},
            )
        )
    return found


def _is_used(event: Event) -> bool:
    return event.kind == SEEN and not event.number("mdv") and not math.isnan(event["dv"])


def _censored(table: Table, event: Event) -> tuple[float, float | None, int]:
    """Value, upper end and code of an observation by CENS and LIMIT."""
    value, limit, code = event["dv"], event["limit"], event.number("cens")
    if not code:
        return value, None, 0
    if math.isnan(limit):
        return value, None, LEFT if code > 0 else RIGHT
    lower, upper = (limit, value) if code > 0 else (value, limit)
    if not lower < upper:
        side = "below" if code > 0 else "above"
        raise TableError(
            f"{table.at(event.row)}: CENS is {code:g} and LIMIT {limit:g}, expected {side} DV {value:g}"
        )
    return lower, upper, INTERVAL


def _in_words(table: Table, events: Sequence[Event]) -> list[str]:
    """Rows that are not used, by reason."""
    seen = [e for e in events if e.kind == SEEN]
    missing = [e.row for e in seen if not e.number("mdv") and is_missing(table["dv"].cells[e.row])]
    hidden = sum(bool(e.number("mdv")) for e in seen)
    others = sum(e.kind == OTHER for e in events)
    said = missing_in_words(table, missing)
    said += [f"excluded by MDV: {hidden}"] if hidden else []
    return said + ([f"excluded, as EVID is 2: {others}"] if others else [])
