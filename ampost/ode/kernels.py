"""The driver: eight rows side by side, each with its own time, step, doses and looks; in numba.

Written once for every model and method, so numba's disk cache holds it. What depends on the model are
the functions of a `Stepper`, which it calls by address. A row that is done makes room for the next one.
The numbers of a row do not depend on which rows stand beside it.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ampost.ode.graph import LANES

# slots of the block's head
TIME, STEP, TRIED, STOP, ACCEPTED, PREVIOUS, NEXT, RTOL, ATOL, STIFF, X, AMOUNT, EVENT = range(13)
REJECTED, BEFORE, HOT, HEAD = 13, 14, 15, 16

# d state / d one of these
INITIAL, PARAMETER, EDGE_TIME, EDGE_JUMP, EDGE_RATE = range(5)

# functions, in the order of their addresses
BEGIN, SLOPES, ATTEMPT, LOOK, JUMP, LINEARISE, COLUMN, JUMP_COLUMN, COLUMNS, LOOK_COLUMNS, JUMP_FORCING = range(
    11
)

# how a row ended; the numbers are those of `problem.Status`, and STIFF_ROW asks for another method
OK, TOO_MANY_STEPS, NOT_FINITE, EXPLODED, STALLED, DOSE_BEFORE_START, STIFF_ROW = range(7)

_real = types.float64
_vector = types.Array(_real, 1, "C")
_matrix = types.Array(_real, 2, "C")
_cube = types.Array(_real, 3, "C")
_hyper = types.Array(_real, 4, "C")
_whole = types.Array(types.int64, 1, "C")
_table = types.Array(types.int64, 2, "C")
_flags = types.Array(types.boolean, 2, "C")

_SIGNATURE = types.void(
    *(_whole, types.int64, types.int64, types.int64, types.int64),
    *(_real, _matrix, _matrix, _matrix, _flags),
    *(_matrix, _table, _matrix, _matrix, types.int64),
    *(_real, _real, types.int64, _real, _real),
    *(_whole, _whole, _cube, _hyper, _cube, _matrix),
    *(_whole, _vector, _matrix),
    _whole,
)


@intrinsic
def _call(context, address, block, area, extra):
    """Call the compiled function at `address`."""

    def generate(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), (pointer, pointer, pointer))
        given = [builder.inttoptr(a, pointer) for a in arguments[1:]]
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@njit(inline="always")
def _slots(count):
    """Slots of eight doubles, at an address that 64 divides, and that address."""
    room = np.zeros(count * LANES + 8)
    skip = (-room.ctypes.data // 8) % 8
    out = room[skip : skip + count * LANES].reshape((count, LANES))
    return out, np.int64(out.ctypes.data)


@njit(types.void(types.int64, _matrix, _matrix, _matrix), cache=True)
def evaluate(address, block, area, extra):
    """Call one compiled function on slots (slot, lane), to compare with torch's."""
    _call(address, np.int64(block.ctypes.data), np.int64(area.ctypes.data), np.int64(extra.ctypes.data))


@njit(inline="always")
def _jumps_now(r, edge, edge_time, t):
    return edge < edge_time.shape[1] and edge_time[r, edge] <= t


@njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def drive(
    code,
    block_slots,
    area_slots,
    inflow_at,
    stages,
    start,
    begin,
    parameters,
    times,
    after_dose,
    edge_time,
    edge_target,
    edge_jump,
    edge_rate,
    events,
    rtol,
    atol,
    max_steps,
    patience,
    patience_per_edge,
    kinds,
    index,
    states,
    sensitivities,
    weights,
    gradient,
    status,
    reached,
    ended,
    rows,
):
    """Solve `rows`: `states` (row, time, state), `status`, and time and state at the end.

    `times` are sorted, those after a dose behind those before it. An edge adds `jump` to its target
    and `rate` to the inflow, or is an event of amount `jump`, or sets a signal to `jump` with slope
    `rate`. With columns (`kinds`, `index`), `sensitivities` (row, time, column, state) are stored, or,
    where `weights` (row, time, state) are given, summed into `gradient` (row, column). A row ends as
    STIFF_ROW where it would take more than `patience` further steps at the edge of stability, or where
    its steps do not grow and would exceed the budget.
    """
    n, m, edges, looks = begin.shape[1], parameters.shape[1], edge_time.shape[1], times.shape[1]
    columns = kinds.size
    block, at_block = _slots(block_slots)
    area, at_area = _slots(area_slots)
    flat, at_column = _slots(max(1, columns * (area_slots + stages * n)))
    forced = flat[columns * area_slots :]  # what each column is driven by, at each stage
    at_force = at_column + columns * area_slots * LANES * 8
    _jumped, at_jumped = _slots(max(1, columns * n))
    wide = area_slots * LANES * 8  # bytes of one column
    force = stages * n * LANES * 8  # and of its forcing
    storing, summing = sensitivities.shape[0] > 0, weights.shape[0] > 0
    by_time = False
    for c in range(columns):
        by_time = by_time or kinds[c] == EDGE_TIME
    row, edge = np.full(LANES, -1), np.zeros(LANES, dtype=np.int64)
    look, taken = np.zeros(LANES, dtype=np.int64), np.zeros(LANES, dtype=np.int64)
    stiff, calm = np.zeros(LANES, dtype=np.int64), np.zeros(LANES, dtype=np.int64)
    fresh, due = np.zeros(LANES, dtype=np.bool_), np.zeros(LANES, dtype=np.bool_)
    end, pace = np.zeros(LANES), np.zeros(LANES)
    for lane in range(LANES):
        block[RTOL, lane] = rtol
        block[ATOL, lane] = atol
    following = 0
    if looks == 0:
        return
    while True:
        # ---------------------------------------------------------------- rows take the free lanes
        busy, settling = False, False
        for lane in range(LANES):
            while row[lane] < 0 and following < rows.size:
                r = rows[following]
                following += 1
                for j in range(looks):
                    for i in range(n):
                        states[r, j, i] = np.nan
                if summing:
                    for c in range(columns):
                        gradient[r, c] = 0.0
                if storing:
                    for j in range(looks):
                        for c in range(columns):
                            for i in range(n):
                                sensitivities[r, j, c, i] = 0.0
                misplaced = False
                for j in range(edges):
                    dosed = edge_target[r, j] < n + events
                    misplaced = misplaced or (dosed and not edge_time[r, j] >= start)
                if misplaced:
                    status[r] = DOSE_BEFORE_START
                    continue
                row[lane], edge[lane], look[lane], taken[lane], stiff[lane], calm[lane] = r, 0, 0, 0, 0, 0
                fresh[lane], end[lane], pace[lane] = True, times[r, looks - 1], 0.0
                block[TIME, lane] = start
                for k in range(m):
                    block[HEAD + k, lane] = parameters[r, k]
                for k in range(HEAD + m, inflow_at + n):
                    block[k, lane] = 0.0
                for k in range(area_slots):
                    area[k, lane] = 0.0
                for i in range(n):
                    area[i, lane] = begin[r, i]
                for k in range(columns * area_slots):
                    flat[k, lane] = 0.0
                for c in range(columns):
                    if kinds[c] == INITIAL:
                        flat[c * area_slots + index[c], lane] = 1.0
                    if kinds[c] == EDGE_RATE:
                        for k in range(stages * n):
                            forced[c * stages * n + k, lane] = 0.0
            busy = busy or row[lane] >= 0
            settling = settling or fresh[lane]
        if not busy:
            break
        # ------------------- at the start and at edges: look before, jump, look after, begin again
        while settling:
            settling, eventful = False, False
            for lane in range(LANES):
                due[lane] = False
                block[EVENT, lane] = -1.0
                if not fresh[lane]:
                    continue
                r, t = row[lane], block[TIME, lane]
                jumps = _jumps_now(r, edge[lane], edge_time, t)
                while (
                    look[lane] < looks
                    and times[r, look[lane]] <= t
                    and not (jumps and after_dose[r, look[lane]])
                ):
                    for i in range(n):
                        states[r, look[lane], i] = area[i, lane]
                        for c in range(columns):
                            seen = flat[c * area_slots + i, lane]
                            if storing:
                                sensitivities[r, look[lane], c, i] = seen
                            elif summing and weights[r, look[lane], i] != 0.0:
                                gradient[r, c] += weights[r, look[lane], i] * seen
                    look[lane] += 1
                if jumps:
                    due[lane], settling = True, True
                    target = edge_target[r, edge[lane]]
                    block[AMOUNT, lane] = edge_jump[r, edge[lane]]
                    if n <= target < n + events:
                        block[EVENT, lane] = float(target - n)
                        eventful = True
            if not settling:
                break
            if by_time:
                _call(code[SLOPES], at_block, at_area, 0)
                for c in range(columns):
                    if kinds[c] == EDGE_TIME:
                        for lane in range(LANES):
                            if due[lane] and edge[lane] == index[c]:
                                for i in range(n):
                                    flat[c * area_slots + i, lane] += area[2 * n + i, lane]
            if eventful:
                _call(code[JUMP], at_block, at_area, 0)
                if columns:
                    _call(code[JUMP_FORCING], at_block, at_area, at_jumped)
                for c in range(columns):
                    for lane in range(LANES):
                        hot = kinds[c] == EDGE_JUMP and due[lane] and edge[lane] == index[c]
                        block[HOT, lane] = 1.0 if hot else 0.0
                    _call(code[JUMP_COLUMN], at_block, at_column + c * wide, at_jumped + c * n * LANES * 8)
            for lane in range(LANES):
                if not due[lane]:
                    continue
                r = row[lane]
                target, jump, rate = (
                    edge_target[r, edge[lane]],
                    edge_jump[r, edge[lane]],
                    edge_rate[r, edge[lane]],
                )
                if target < n:
                    area[target, lane] += jump
                    block[inflow_at + target, lane] += rate
                    for c in range(columns):
                        if kinds[c] == EDGE_JUMP and index[c] == edge[lane]:
                            flat[c * area_slots + target, lane] += 1.0
                        if kinds[c] == EDGE_RATE and index[c] == edge[lane]:
                            for k in range(stages):
                                forced[(c * stages + k) * n + target, lane] = 1.0
                elif target < n + events:
                    for i in range(n):
                        area[i, lane] = area[2 * n + i, lane]
                        for c in range(columns):
                            flat[c * area_slots + i, lane] = flat[c * area_slots + 2 * n + i, lane]
                else:
                    at = HEAD + m + 3 * (target - n - events)
                    when = edge_time[r, edge[lane]]
                    block[at, lane], block[at + 1, lane] = jump, rate
                    block[at + 2, lane] = when if math.isfinite(when) else block[TIME, lane]
                edge[lane] += 1
            if by_time:
                _call(code[SLOPES], at_block, at_area, 0)
                for c in range(columns):
                    if kinds[c] == EDGE_TIME:
                        for lane in range(LANES):
                            if due[lane] and edge[lane] - 1 == index[c]:
                                for i in range(n):
                                    flat[c * area_slots + i, lane] -= area[2 * n + i, lane]
        starting = False
        for lane in range(LANES):
            if fresh[lane]:
                r = row[lane]
                block[ACCEPTED, lane] = 0.0
                block[REJECTED, lane] = 0.0
                block[PREVIOUS, lane] = 1e-4
                block[STOP, lane] = end[lane]
                if edge[lane] < edges and edge_time[r, edge[lane]] < end[lane]:
                    block[STOP, lane] = edge_time[r, edge[lane]]
                starting = True
        if starting:
            _call(code[BEGIN], at_block, at_area, 0)
            for lane in range(LANES):
                if not fresh[lane]:
                    continue
                r = row[lane]
                fresh[lane] = False
                block[STEP, lane] = block[TRIED, lane]
                good = True
                for i in range(n):
                    good = good and math.isfinite(area[i, lane]) and math.isfinite(area[2 * n + i, lane])
                    area[3 * n + i, lane] = area[2 * n + i, lane]
                if look[lane] >= looks or not good:
                    status[r] = OK if look[lane] >= looks else NOT_FINITE
                    reached[r] = block[TIME, lane]
                    for i in range(n):
                        ended[r, i] = area[i, lane]
                    row[lane] = -1
            busy = False
            for lane in range(LANES):
                busy = busy or row[lane] >= 0
            if not busy:
                continue
        # ------------------------------------------------------------------------------- one step
        _call(code[ATTEMPT], at_block, at_area, 0)
        if columns and code[COLUMNS]:
            _call(code[COLUMNS], at_block, at_area, at_column)
        elif columns:
            _call(code[LINEARISE], at_block, at_area, at_force)
            for c in range(columns):
                _call(code[COLUMN], at_block, at_column + c * wide, at_force + c * force)
        # ------------------------------------------------------------------------- look within it
        while True:
            some = False
            for lane in range(LANES):
                due[lane] = False
                block[X, lane] = 0.0
                if row[lane] >= 0 and block[ACCEPTED, lane] > 0.5 and look[lane] < looks:
                    r, new = row[lane], block[NEXT, lane]
                    when = times[r, look[lane]]
                    at_edge = when == new and _jumps_now(r, edge[lane], edge_time, new)
                    if when <= new and not (at_edge and after_dose[r, look[lane]]):
                        due[lane], some = True, True
                        x = (when - block[TIME, lane]) / block[TRIED, lane]
                        block[X, lane] = min(max(x, 0.0), 1.0)
            if not some:
                break
            _call(code[LOOK], at_block, at_area, 0)
            for lane in range(LANES):
                if due[lane]:
                    for i in range(n):
                        states[row[lane], look[lane], i] = area[2 * n + i, lane]
            if columns and code[COLUMNS]:
                _call(code[LOOK_COLUMNS], at_block, at_area, at_column)
            for c in range(columns):
                if not code[COLUMNS]:
                    _call(code[LOOK], at_block, at_column + c * wide, 0)
                for lane in range(LANES):
                    if due[lane]:
                        r = row[lane]
                        for i in range(n):
                            seen = flat[c * area_slots + 2 * n + i, lane]
                            if storing:
                                sensitivities[r, look[lane], c, i] = seen
                            elif weights[r, look[lane], i] != 0.0:
                                gradient[r, c] += weights[r, look[lane], i] * seen
            for lane in range(LANES):
                if due[lane]:
                    look[lane] += 1
        # -------------------------------------------------------------------- what became of rows
        for lane in range(LANES):
            r = row[lane]
            if r < 0:
                continue
            taken[lane] += 1
            went = block[ACCEPTED, lane] > 0.5
            verdict = -1
            if went:
                if look[lane] >= looks:
                    verdict = OK
                elif block[NEXT, lane] >= block[STOP, lane]:
                    fresh[lane] = True
                    block[TIME, lane] = block[NEXT, lane]
                    block[ACCEPTED, lane] = 0.0
                    for i in range(n):
                        area[i, lane] = area[n + i, lane]
                        for c in range(columns):
                            flat[c * area_slots + i, lane] = flat[c * area_slots + n + i, lane]
                if block[STIFF, lane] > 0.5:
                    stiff[lane] += 1
                    calm[lane] = 0
                    if stiff[lane] >= 15 and verdict < 0:
                        left = (end[lane] - block[NEXT, lane]) / block[TRIED, lane]
                        if left > patience + patience_per_edge * (edges - edge[lane]):
                            verdict = STIFF_ROW
                else:
                    calm[lane] += 1
                    if calm[lane] >= 6:
                        stiff[lane] = 0
                if patience < np.inf and verdict < 0 and taken[lane] % 32 == 0:
                    # at tight tolerances the edge of stability hides: but steps that do not grow tell
                    left = (end[lane] - block[NEXT, lane]) / block[STEP, lane]
                    if block[STEP, lane] < 1.5 * pace[lane] and left > 2.0 * (max_steps - taken[lane]):
                        verdict = STIFF_ROW
                    pace[lane] = block[STEP, lane]
            elif not block[STEP, lane] > 1e-14 * max(abs(block[TIME, lane]), 1e-6 * abs(end[lane])):
                verdict = STALLED
            if verdict < 0 and taken[lane] >= max_steps:
                verdict = TOO_MANY_STEPS
            if verdict < 0:
                continue
            if verdict in (STALLED, TOO_MANY_STEPS):
                size, scale, known = 0.0, 1.0, True
                for i in range(n):
                    size, scale = max(size, abs(area[i, lane])), max(scale, abs(begin[r, i]))
                    known = known and math.isfinite(area[n + i, lane])
                if size > 1e8 * scale:
                    verdict = EXPLODED
                elif verdict == STALLED and not known:
                    verdict = NOT_FINITE
            status[r], reached[r] = verdict, block[NEXT if went else TIME, lane]
            for i in range(n):
                ended[r, i] = area[n + i if went and not fresh[lane] else i, lane]
            row[lane], fresh[lane] = -1, False
