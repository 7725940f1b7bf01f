"""A right-hand side and a method -> the compiled functions that `kernels.drive` calls for eight rows.

Every function is a straight line over slots (see `machine`). Behind the first address stands the block
of what the rows are at: the head (names below), parameters, signals, inflows, and what the derivative
of a step needs again. Behind the second stand the states, or one column of sensitivities, in the same
layout: value at the start of the step, at its end, as seen in between, stages. Behind the third stand
the derivatives of the slopes by the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ampost.ode.graph import Graph
from ampost.ode.kernels import (
    ACCEPTED,
    AMOUNT,
    ATOL,
    BEFORE,
    EDGE_RATE,
    EVENT,
    HEAD,
    HOT,
    NEXT,
    PARAMETER,
    PREVIOUS,
    REJECTED,
    RTOL,
    STEP,
    STIFF,
    STOP,
    TIME,
    TRIED,
    X,
)
from ampost.ode.machine import Code, Place
from ampost.ode.methods import Linear, Matrix, Method, Vector
from ampost.ode.trace import Jump, Rates, Symbol

LONGEST = 6_000  # operations in one line; longer ones take long to compile and leave the processor's cache
STABLE = 3.0**2  # where stiffness shows: (step x eigenvalue) squared at the edge of stability


@dataclass(frozen=True)
class Stepper:
    """The functions of one right-hand side by one method; `inflows` where anything is infused."""

    rates: Rates
    jumps: Sequence[Jump]
    method: Method
    inflows: bool

    @cached_property
    def solving(self) -> Code:
        """begin, slopes, attempt, look and jump."""
        functions = {"begin": self._begin(), "slopes": self._slopes_only(), "attempt": self._attempt[0]}
        functions |= {"look": self._look(), "jump": self._jump()}
        return Code(self.graph, functions)

    def deriving(self, wanted: Sequence[tuple[int, int]]) -> Code:
        """What sensitivities need besides: columns and look_columns for all that are `wanted` at once.

        Where that would be too long a line, linearise, and column for one after the other.
        """
        functions = {"jump_column": self._jump_column(), "jump_forcing": self._jump_forcing(wanted)}
        together = self._columns(wanted)
        if together is not None:
            functions |= {"columns": together, "look_columns": self._look_columns(len(wanted))}
        else:
            functions |= self._one_by_one(wanted)
        return Code(self.graph, functions)

    @cached_property
    def jacobians(self) -> Code:
        """jacobians: d slope / d state and parameter behind the third address, to compare with torch's."""
        t, y = self._slot(TIME), self._area(0)
        rows = [a + b for a, b in zip(self.by_state(t, y), self.by_parameter(t, y), strict=True)]
        flat = [value for row in rows for value in row]
        return Code(self.graph, {"jacobians": {(2, k): self._number(v) for k, v in enumerate(flat)}})

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.rates.states)

    @property
    def inflow_at(self) -> int:
        """The slot of the first inflow."""
        return HEAD + len(self.rates.parameters) + len(self.rates.signals)

    @property
    def block_slots(self) -> int:
        """Slots of the block."""
        n, stages = self.size, self.method.stages
        return self._kept_at + n + 2 * n * n + (stages + 1) * n * n

    @property
    def area_slots(self) -> int:
        """Slots of the states, and of each column."""
        return (3 + self.method.stages) * self.size

    # -------------------------------------------------------------------------------- symbols

    @cached_property
    def graph(self) -> Graph:
        """Where all functions are written."""
        return Graph()

    @property
    def _kept_at(self) -> int:
        return self.inflow_at + self.size

    def _slot(self, slot: int, pointer: int = 0) -> Symbol:
        return Symbol(self.graph, self.graph.input(pointer, slot))

    def _area(self, part: int) -> Vector:
        """Value at the start (0), at the end (1), as seen (2), or stage part - 3."""
        return [self._slot(part * self.size + i, 1) for i in range(self.size)]

    @property
    def _stages(self) -> list[Vector]:
        return [self._area(3 + k) for k in range(self.method.stages)]

    def _to_area(self, part: int, values: Vector) -> dict[Place, int]:
        return {(1, part * self.size + i): self._number(v) for i, v in enumerate(values)}

    def _number(self, value: Any) -> int:
        return value.index if isinstance(value, Symbol) else self.graph.constant(value)

    def _written(self, outputs: Sequence[int], t: Any, y: Vector) -> Vector:
        """Nodes of the right-hand side's own graph, at a point of this one; what is 0 stays a number."""
        rates, graph = self.rates, self.graph
        m = HEAD + len(rates.parameters)
        given = [t, *y]
        given += [self._slot(HEAD + k) for k in range(len(rates.parameters))]
        given += [self._slot(m + k) for k in range(len(rates.signals))]
        inputs = {k: self._number(v) for k, v in zip(rates.inputs, given, strict=True)}
        found = graph.copied(outputs, rates.graph, inputs)
        return [0.0 if graph.is_zero(k) else Symbol(graph, k) for k in found]

    def _matrix(self, rows: Matrix, *point: Any) -> Matrix:
        width = len(rows[0])
        flat = self._written([k for row in rows for k in row], *point)
        return [flat[k * width : (k + 1) * width] for k in range(len(rows))]

    # ------------------------------------------------------------ the right-hand side, as methods ask

    def slopes(self, t: Any, y: Vector) -> Vector:
        """Slopes at a point, inflows included."""
        out = self._written(self.rates.slopes, t, y)
        if self.inflows:
            out = [v + self._slot(self.inflow_at + i) for i, v in enumerate(out)]
        return [v if isinstance(v, Symbol) else Symbol(self.graph, self.graph.constant(v)) for v in out]

    def by_state(self, t: Any, y: Vector) -> Matrix:
        """d slope / d state at a point."""
        return self._matrix(self.rates.by_state, t, y)

    def by_parameter(self, t: Any, y: Vector) -> Matrix:
        """d slope / d parameter at a point."""
        return self._matrix(self.rates.by_parameter, t, y)

    def by_time(self, t: Any, y: Vector) -> Vector:
        """d slope / d time at a point."""
        return self._written(self.rates.by_time, t, y)

    def second(self, t: Any, y: Vector) -> tuple[Matrix, Matrix]:
        """Derivatives of (d slope / d state), flat, by states and parameters at a point."""
        by_state, by_parameter = self.rates.second
        return self._matrix(by_state, t, y), self._matrix(by_parameter, t, y)

    def by_time_and(self, t: Any, y: Vector) -> tuple[Matrix, Matrix]:
        """Derivatives by states and parameters of d slope / d time."""
        by_state, by_parameter = self.rates.by_time_and
        return self._matrix(by_state, t, y), self._matrix(by_parameter, t, y)

    # ------------------------------------------------------------------------------ the functions

    def _slopes_only(self) -> dict[Place, int]:
        return self._to_area(2, self.slopes(self._slot(TIME), self._area(0)))

    def _look(self) -> dict[Place, int]:
        seen = self.method.between(self._slot(X), self._area(0), self._area(1), self._stages, self._slot(TRIED))
        return self._to_area(2, seen)

    def _size_of(self, vector: Vector, scale: Vector) -> Symbol:
        """Mean square of a vector in units of the tolerated error."""
        parts = [v / w for v, w in zip(vector, scale, strict=True)]
        total: Any = 0.0
        for part in parts:
            total = total + part * part
        return total / float(len(vector))  # type: ignore[no-any-return]

    def _scale(self, *vectors: Vector) -> Vector:
        out = []
        for entries in zip(*vectors, strict=True):
            size = abs(entries[0])
            for other in entries[1:]:
                size = _larger(size, abs(other))
            out.append(self._slot(ATOL) + self._slot(RTOL) * size)
        return out

    def _begin(self) -> dict[Place, int]:
        """Slopes (as seen) and a first step: Hairer, Norsett and Wanner, Solving ODEs I, II.4."""
        t, y, span = self._slot(TIME), self._area(0), self._slot(STOP) - self._slot(TIME)
        first = self.slopes(t, y)
        scale = self._scale(y)
        value, slope = self._size_of(y, scale), self._size_of(first, scale)
        usual = _where((value > 1e-10) & (slope > 1e-10), 0.01 * _root(value / slope), 1e-6 * span)
        short = _smaller(usual, span)
        second = self.slopes(t + short, [a + short * b for a, b in zip(y, first, strict=True)])
        bend = self._size_of([a - b for a, b in zip(second, first, strict=True)], scale) / (short * short)
        largest = _where(bend > slope, bend, slope)
        fit = _power(1e-4 / _larger(largest, 1e-30), 0.1)
        step = _smaller(_smaller(100.0 * short, fit), span)
        step = _where(bend < 1e300, step, 0.01 * short)  # not finite a little further: go carefully
        return self._to_area(2, first) | {(0, TRIED): self._number(step)}

    @cached_property
    def _attempt(self) -> tuple[dict[Place, int], list[Any]]:
        """Outputs of one attempted step, and where what the derivative needs again is kept."""
        method = self.method
        went = self._slot(ACCEPTED) > 0.5
        t = _where(went, self._slot(NEXT), self._slot(TIME))
        y = [_where(went, b, a) for a, b in zip(self._area(0), self._area(1), strict=True)]
        stages = self._stages
        first = [_where(went, b, a) for a, b in zip(stages[0], stages[-1], strict=True)]
        h, previous = self._slot(STEP), self._slot(PREVIOUS)
        room = self._slot(STOP) - t
        clipped = h >= room * (1 - 1e-9)
        s = _where(clipped, room, h)
        step = method.step(self, t, s, y, first)
        error = self._size_of(step.wrong, self._scale(y, step.new))
        if step.sound is not None:
            error = _where(step.sound, error, 1e10)
        good = error <= 1.0
        bounded = _where(error < 1e10, _larger(error, 1e-10), 1e10)
        shrunk = s * _larger(0.9 * _power(bounded, -0.1), 0.2)
        factor = 0.9 * _power(bounded, -0.07) * _power(previous, 0.04)
        grown = s * _smaller(_larger(factor, 0.2), _where(self._slot(REJECTED) > 0.5, 1.0, 5.0))
        onward = _where(clipped, _larger(h, grown), grown)
        outputs = {
            TIME: t,
            TRIED: s,
            STEP: _where(good, onward, shrunk),
            ACCEPTED: _where(good, 1.0, 0.0),
            REJECTED: _where(good, 0.0, 1.0),
            BEFORE: _where(went, 1.0, 0.0),
            PREVIOUS: _where(good, _larger(bounded, 1e-8), previous),
            NEXT: _where(clipped, self._slot(STOP), t + s),
            STIFF: Symbol(self.graph, self.graph.constant(0.0)),
        }
        if step.stiffness is not None:
            turn, apart = (sum((v * v for v in part[1:]), part[0] * part[0]) for part in step.stiffness)
            outputs[STIFF] = _where(good & (turn > STABLE * apart), 1.0, 0.0)
        out = {(0, slot): self._number(v) for slot, v in outputs.items()}
        out |= self._to_area(0, y) | self._to_area(1, step.new)
        for k, stage in enumerate(step.stages):
            out |= self._to_area(3 + k, stage)
        kept = self._stored(step.kept, self._kept_at, out)
        return out, kept

    def _stored(self, values: Sequence[Any], at: int, out: dict[Place, int]) -> list[Any]:
        """Write what is not constant to slots from `at` on; the same values as read from there."""
        back: list[Any] = []
        slots: dict[int, int] = {}  # equal values share one
        for k, value in enumerate(values):
            if isinstance(value, Symbol) and self.graph.value(value.index) is None:
                slot = slots.setdefault(value.index, at + k)
                out[0, slot] = value.index
                back.append(self._slot(slot))
            else:
                back.append(value)
        return back

    @cached_property
    def _linear(self) -> Linear:
        t, s = self._slot(TIME), self._slot(TRIED)
        return self.method.linear(self, t, s, self._area(0), self._area(1), self._stages)

    def _one_by_one(self, wanted: Sequence[tuple[int, int]]) -> dict[str, dict[Place, int]]:
        """linearise, which stores the derivative of the step, and column, which applies it to one of them."""
        n, stages, linear = self.size, self.method.stages, self._linear
        out: dict[Place, int] = {}
        flat = [v for matrix in (*linear.at_stage, linear.drift) for row in matrix for v in row]
        flat = self._stored(flat, self._kept_at + n + 2 * n * n, out)
        rows = [flat[k * n : (k + 1) * n] for k in range((stages + 1) * n)]
        *at_stage, drift = [rows[k * n : (k + 1) * n] for k in range(stages + 1)]
        for c, (kind, index) in enumerate(wanted):
            for k, matrix in enumerate(linear.forcing):
                for i, row in enumerate(matrix):
                    if kind == PARAMETER and isinstance(row[index], Symbol):
                        out[2, (c * stages + k) * n + i] = row[index].index
        forcing = [[self._slot(k * n + i, 2) for i in range(n)] for k in range(stages)]
        return {"linearise": out, "column": self._column(1, 0, at_stage, drift, forcing)}

    def _column(
        self, pointer: int, at: int, at_stage: list[Matrix], drift: Matrix, forcing: list[Vector]
    ) -> dict[Place, int]:
        """One column, which stands behind `pointer` from slot `at` on, through the step just tried."""
        n = self.size
        went = self._slot(BEFORE) > 0.5
        old, new = ([self._slot(at + part * n + i, pointer) for i in range(n)] for part in (0, 1))
        start = [_where(went, b, a) for a, b in zip(old, new, strict=True)]
        s, kept = self._slot(TRIED), self._attempt[1]
        end, slopes = self.method.column(s, start, at_stage, drift, forcing, kept)
        parts = {0: start, 1: end} | {3 + k: stage for k, stage in enumerate(slopes)}
        return {
            (pointer, at + part * n + i): self._number(v)
            for part, vs in parts.items()
            for i, v in enumerate(vs)
        }

    def _columns(self, wanted: Sequence[tuple[int, int]]) -> dict[Place, int] | None:
        """All columns at once, behind the third address, with their forcing after them; None if too long."""
        n, stages, linear = self.size, self.method.stages, self._linear
        behind = len(wanted) * self.area_slots
        out: dict[Place, int] = {}
        for c, (kind, index) in enumerate(wanted):
            if kind == PARAMETER:
                forcing = [[row[index] for row in matrix] for matrix in linear.forcing]
            elif kind == EDGE_RATE:
                at = behind + c * stages * n
                forcing = [[self._slot(at + k * n + i, 2) for i in range(n)] for k in range(stages)]
            else:
                forcing = [[0.0] * n for _ in range(stages)]
            out |= self._column(2, c * self.area_slots, linear.at_stage, linear.drift, forcing)
            if len(self.graph.ancestors(out.values())) * len(wanted) > LONGEST * (c + 1):
                return None
        return out

    def _look_columns(self, count: int) -> dict[Place, int]:
        """All columns as seen between the ends of the step."""
        n = self.size
        out: dict[Place, int] = {}
        for c in range(count):
            parts = [
                [self._slot(c * self.area_slots + part * n + i, 2) for i in range(n)]
                for part in range(3 + self.method.stages)
            ]
            seen = self.method.between(self._slot(X), parts[0], parts[1], parts[3:], self._slot(TRIED))
            out |= {(2, c * self.area_slots + 2 * n + i): self._number(v) for i, v in enumerate(seen)}
        return out

    def _jump(self) -> dict[Place, int]:
        """States after an event as seen, and its derivatives; no event where EVENT is -1."""
        n, y = self.size, self._area(0)
        out = self._to_area(2, self._chosen([jump.values for jump in self.jumps], y))
        eye = [1.0 if i == j else 0.0 for i in range(n) for j in range(n)]
        by_state = self._chosen([[k for row in jump.by_state for k in row] for jump in self.jumps], eye)
        by_amount = self._chosen([jump.by_amount for jump in self.jumps], [0.0] * n)
        at = self._kept_at
        out |= {(0, at + k): self._number(v) for k, v in enumerate([*by_amount, *by_state])}
        return out

    def _jump_forcing(self, wanted: Sequence[tuple[int, int]]) -> dict[Place, int]:
        """Derivatives of an event by the parameters that are `wanted`."""
        n = self.size
        out: dict[Place, int] = {}
        for c, (kind, index) in enumerate(wanted):
            if kind == PARAMETER and self.jumps:
                flat = [[row[index] for row in jump.by_parameter] for jump in self.jumps]
                values = self._chosen(flat, [0.0] * n)
                out |= {(2, c * n + i): self._number(v) for i, v in enumerate(values)}
        return out

    def _chosen(self, of_each: Sequence[Sequence[int]], otherwise: Vector) -> Vector:
        """For each row the values of its own event."""
        chosen = list(otherwise)
        for event, (jump, outputs) in enumerate(zip(self.jumps, of_each, strict=True)):
            given: list[Any] = [*self._area(0), *(self._slot(HEAD + k) for k in range(len(jump.parameters)))]
            given.append(self._slot(AMOUNT))
            inputs = dict(
                zip([*jump.states, *jump.parameters, jump.amount], map(self._number, given), strict=True)
            )
            values = [Symbol(self.graph, k) for k in self.graph.copied(outputs, jump.graph, inputs)]
            mine = self._slot(EVENT) == float(event)
            chosen = [_where(mine, a, b) for a, b in zip(values, chosen, strict=True)]
        return chosen

    def _jump_column(self) -> dict[Place, int]:
        n, at, column = self.size, self._kept_at, self._area(0)
        after = []
        for i in range(n):
            total: Any = self._slot(i, 2) + self._slot(at + i) * self._slot(HOT)
            for j in range(n):
                total = total + self._slot(at + n + i * n + j) * column[j]
            after.append(total)
        return self._to_area(2, after)


def _where(condition: Symbol, yes: Any, no: Any) -> Symbol:
    graph = condition.graph
    numbers = [v.index if isinstance(v, Symbol) else graph.constant(v) for v in (yes, no)]
    return Symbol(graph, graph.do("where", condition.index, *numbers))


def _larger(one: Symbol, two: Any) -> Symbol:
    return _where(one > two, one, two)


def _smaller(one: Symbol, two: Any) -> Symbol:
    return _where(one < two, one, two)


def _root(value: Symbol) -> Symbol:
    return Symbol(value.graph, value.graph.do("sqrt", value.index))


def _power(value: Symbol, exponent: float) -> Symbol:
    """Good to some percent, which is enough to choose a step by."""
    graph = value.graph
    return Symbol(graph, graph.do("rough_pow", value.index, graph.constant(exponent)))
