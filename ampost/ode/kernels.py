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

# slots of the block's head
TIME, STEP, TRIED, STOP, ACCEPTED, PREVIOUS, NEXT, RTOL, ATOL, STIFF, X, AMOUNT, EVENT = range(13)
REJECTED, BEFORE, HOT, HEAD = 13, 14, 15, 16

# d state / d one of these
INITIAL, PARAMETER, EDGE_TIME, EDGE_JUMP, EDGE_RATE = range(5)

# functions, in the order of their addresses
BEGIN, SLOPES, ATTEMPT, LOOK, JUMP, LINEARISE, COLUMN, JUMP_COLUMN, COLUMNS, LOOK_COLUMNS = range(10)

# how a row ended; the numbers are those of `problem.Status`, and STIFF_ROW asks for another method
OK, TOO_MANY_STEPS, NOT_FINITE, EXPLODED, STALLED, STIFF_ROW = range(6)

LANES = 8

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
    *(_whole, _whole, _vector, _matrix),
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
    steps,
    reached,
    ended,
    rows,
):
    """Solve `rows`: `states` (row, time, state), `status`, `steps`, and time and state at the end.

    `times` are sorted, those after a dose behind those before it. An edge adds `jump` to its target
    and `rate` to the inflow, or is an event of amount `jump`, or sets a signal to `jump` with slope
    `rate`. With columns (`kinds`, `index`), `sensitivities` (row, time, column, state) are stored, or,
    where `weights` (row, time, state) are given, summed into `gradient` (row, column). A row at the
    edge of stability whose remaining steps would exceed `patience` ends as STIFF_ROW.
    """
    n, m, edges, looks = begin.shape[1], parameters.shape[1], edge_time.shape[1], times.shape[1]
    columns = kinds.size
    block, at_block = _slots(block_slots)
    area, at_area = _slots(area_slots)
    flat, at_column = _slots(max(1, columns * area_slots + (m + columns) * stages * n))
    forced = flat[columns * area_slots :]  # the derivatives by parameters, and by rates, stand behind the columns
    at_force = at_column + columns * area_slots * LANES * 8
    jumped, at_jumped = _slots(max(1, (m + columns) * n))
    wide = area_slots * LANES * 8  # bytes of one column
    force = stages * n * LANES * 8  # and of its forcing
    storing, summing = sensitivities.shape[0] > 0, weights.shape[0] > 0
    by_time = False
    mine = np.zeros(max(1, columns), dtype=np.int64)  # where each column finds its forcing
    for c in range(columns):
        by_time = by_time or kinds[c] == EDGE_TIME
        mine[c] = index[c] if kinds[c] == PARAMETER else m + c
    row, edge = np.full(LANES, -1), np.zeros(LANES, dtype=np.int64)
    look, taken = np.zeros(LANES, dtype=np.int64), np.zeros(LANES, dtype=np.int64)
    stiff, calm = np.zeros(LANES, dtype=np.int64), np.zeros(LANES, dtype=np.int64)
    fresh, due = np.zeros(LANES, dtype=np.bool_), np.zeros(LANES, dtype=np.bool_)
    end = np.zeros(LANES)
    for l in range(LANES):
        block[RTOL, l] = rtol
        block[ATOL, l] = atol
    following = 0
    if looks == 0:
        return
    while True:
        # ---------------------------------------------------------------- rows take the free lanes
        busy, settling = False, False
        for l in range(LANES):
            if row[l] < 0 and following < rows.size:
                r = rows[following]
                following += 1
                row[l], edge[l], look[l], taken[l], stiff[l], calm[l] = r, 0, 0, 0, 0, 0
                fresh[l], end[l] = True, times[r, looks - 1]
                block[TIME, l] = start
                for k in range(m):
                    block[HEAD + k, l] = parameters[r, k]
                for k in range(HEAD + m, inflow_at + n):
                    block[k, l] = 0.0
                for k in range(area_slots):
                    area[k, l] = 0.0
                for i in range(n):
                    area[i, l] = begin[r, i]
                for k in range(columns * area_slots):
                    flat[k, l] = 0.0
                for c in range(columns):
                    if kinds[c] == INITIAL:
                        flat[c * area_slots + index[c], l] = 1.0
                    for k in range(stages * n):
                        if kinds[c] != PARAMETER:
                            forced[(m + c) * stages * n + k, l] = 0.0
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
            busy = busy or row[l] >= 0
            settling = settling or fresh[l]
        if not busy:
            break
        # ------------------- at the start and at edges: look before, jump, look after, begin again
        while settling:
            settling, eventful = False, False
            for l in range(LANES):
                due[l] = False
                block[EVENT, l] = -1.0
                if not fresh[l]:
                    continue
                r, t = row[l], block[TIME, l]
                jumps = _jumps_now(r, edge[l], edge_time, t)
                while look[l] < looks and times[r, look[l]] <= t and not (jumps and after_dose[r, look[l]]):
                    for i in range(n):
                        states[r, look[l], i] = area[i, l]
                        for c in range(columns):
                            seen = flat[c * area_slots + i, l]
                            if storing:
                                sensitivities[r, look[l], c, i] = seen
                            elif summing and weights[r, look[l], i] != 0.0:
                                gradient[r, c] += weights[r, look[l], i] * seen
                    look[l] += 1
                if jumps:
                    due[l], settling = True, True
                    target = edge_target[r, edge[l]]
                    block[AMOUNT, l] = edge_jump[r, edge[l]]
                    if n <= target < n + events:
                        block[EVENT, l] = float(target - n)
                        eventful = True
            if not settling:
                break
            if by_time:
                _call(code[SLOPES], at_block, at_area, 0)
                for c in range(columns):
                    if kinds[c] == EDGE_TIME:
                        for l in range(LANES):
                            if due[l] and edge[l] == index[c]:
                                for i in range(n):
                                    flat[c * area_slots + i, l] += area[2 * n + i, l]
            if eventful:
                _call(code[JUMP], at_block, at_area, at_jumped)
                for c in range(columns):
                    for l in range(LANES):
                        hot = kinds[c] == EDGE_JUMP and due[l] and edge[l] == index[c]
                        block[HOT, l] = 1.0 if hot else 0.0
                    _call(
                        code[JUMP_COLUMN], at_block, at_column + c * wide, at_jumped + mine[c] * n * LANES * 8
                    )
            for l in range(LANES):
                if not due[l]:
                    continue
                r = row[l]
                target, jump, rate = edge_target[r, edge[l]], edge_jump[r, edge[l]], edge_rate[r, edge[l]]
                if target < n:
                    area[target, l] += jump
                    block[inflow_at + target, l] += rate
                    for c in range(columns):
                        if kinds[c] == EDGE_JUMP and index[c] == edge[l]:
                            flat[c * area_slots + target, l] += 1.0
                        if kinds[c] == EDGE_RATE and index[c] == edge[l]:
                            for k in range(stages):
                                forced[((m + c) * stages + k) * n + target, l] = 1.0
                elif target < n + events:
                    for i in range(n):
                        area[i, l] = area[2 * n + i, l]
                        for c in range(columns):
                            flat[c * area_slots + i, l] = flat[c * area_slots + 2 * n + i, l]
                else:
                    at = HEAD + m + 3 * (target - n - events)
                    block[at, l], block[at + 1, l], block[at + 2, l] = jump, rate, block[TIME, l]
                edge[l] += 1
            if by_time:
                _call(code[SLOPES], at_block, at_area, 0)
                for c in range(columns):
                    if kinds[c] == EDGE_TIME:
                        for l in range(LANES):
                            if due[l] and edge[l] - 1 == index[c]:
                                for i in range(n):
                                    flat[c * area_slots + i, l] -= area[2 * n + i, l]
        starting = False
        for l in range(LANES):
            if fresh[l]:
                r = row[l]
                block[ACCEPTED, l] = 0.0
                block[REJECTED, l] = 0.0
                block[PREVIOUS, l] = 1e-4
                block[STOP, l] = end[l]
                if edge[l] < edges and edge_time[r, edge[l]] < end[l]:
                    block[STOP, l] = edge_time[r, edge[l]]
                starting = True
        if starting:
            _call(code[BEGIN], at_block, at_area, 0)
            for l in range(LANES):
                if not fresh[l]:
                    continue
                r = row[l]
                fresh[l] = False
                block[STEP, l] = block[TRIED, l]
                good = True
                for i in range(n):
                    good = good and math.isfinite(area[i, l]) and math.isfinite(area[2 * n + i, l])
                    area[3 * n + i, l] = area[2 * n + i, l]
                if look[l] >= looks or not good:
                    status[r] = OK if look[l] >= looks else NOT_FINITE
                    steps[r], reached[r] = taken[l], block[TIME, l]
                    for i in range(n):
                        ended[r, i] = area[i, l]
                    row[l] = -1
            busy = False
            for l in range(LANES):
                busy = busy or row[l] >= 0
            if not busy:
                continue
        # ------------------------------------------------------------------------------- one step
        _call(code[ATTEMPT], at_block, at_area, 0)
        if columns and code[COLUMNS]:
            _call(code[COLUMNS], at_block, at_area, at_column)
        elif columns:
            _call(code[LINEARISE], at_block, at_area, at_force)
            for c in range(columns):
                _call(code[COLUMN], at_block, at_column + c * wide, at_force + mine[c] * force)
        # ------------------------------------------------------------------------- look within it
        while True:
            some = False
            for l in range(LANES):
                due[l] = False
                block[X, l] = 0.0
                if row[l] >= 0 and block[ACCEPTED, l] > 0.5 and look[l] < looks:
                    r, new = row[l], block[NEXT, l]
                    when = times[r, look[l]]
                    at_edge = when == new and _jumps_now(r, edge[l], edge_time, new)
                    if when <= new and not (at_edge and after_dose[r, look[l]]):
                        due[l], some = True, True
                        x = (when - block[TIME, l]) / block[TRIED, l]
                        block[X, l] = min(max(x, 0.0), 1.0)
            if not some:
                break
            _call(code[LOOK], at_block, at_area, 0)
            for l in range(LANES):
                if due[l]:
                    for i in range(n):
                        states[row[l], look[l], i] = area[2 * n + i, l]
            if columns and code[COLUMNS]:
                _call(code[LOOK_COLUMNS], at_block, at_area, at_column)
            for c in range(columns):
                if not code[COLUMNS]:
                    _call(code[LOOK], at_block, at_column + c * wide, 0)
                for l in range(LANES):
                    if due[l]:
                        r = row[l]
                        for i in range(n):
                            seen = flat[c * area_slots + 2 * n + i, l]
                            if storing:
                                sensitivities[r, look[l], c, i] = seen
                            elif weights[r, look[l], i] != 0.0:
                                gradient[r, c] += weights[r, look[l], i] * seen
            for l in range(LANES):
                if due[l]:
                    look[l] += 1
        # -------------------------------------------------------------------- what became of rows
        for l in range(LANES):
            r = row[l]
            if r < 0:
                continue
            taken[l] += 1
            went = block[ACCEPTED, l] > 0.5
            verdict = -1
            if went:
                if look[l] >= looks:
                    verdict = OK
                elif block[NEXT, l] >= block[STOP, l]:
                    fresh[l] = True
                    block[TIME, l] = block[NEXT, l]
                    block[ACCEPTED, l] = 0.0
                    for i in range(n):
                        area[i, l] = area[n + i, l]
                        for c in range(columns):
                            flat[c * area_slots + i, l] = flat[c * area_slots + n + i, l]
                if block[STIFF, l] > 0.5:
                    stiff[l] += 1
                    calm[l] = 0
                    if stiff[l] >= 15 and verdict < 0:
                        left = (end[l] - block[NEXT, l]) / block[TRIED, l]
                        if left > patience + patience_per_edge * (edges - edge[l]):
                            verdict = STIFF_ROW
                else:
                    calm[l] += 1
                    if calm[l] >= 6:
                        stiff[l] = 0
            elif not block[STEP, l] > 1e-14 * max(abs(block[TIME, l]), 1e-6 * abs(end[l])):
                verdict = STALLED
            if verdict < 0 and taken[l] >= max_steps:
                verdict = TOO_MANY_STEPS
            if verdict < 0:
                continue
            if verdict == STALLED or verdict == TOO_MANY_STEPS:
                size, scale, known = 0.0, 1.0, True
                for i in range(n):
                    size, scale = max(size, abs(area[i, l])), max(scale, abs(begin[r, i]))
                    known = known and math.isfinite(area[n + i, l])
                if size > 1e8 * scale:
                    verdict = EXPLODED
                elif verdict == STALLED and not known:
                    verdict = NOT_FINITE
            status[r], steps[r], reached[r] = verdict, taken[l], block[NEXT if went else TIME, l]
            for i in range(n):
                ended[r, i] = area[n + i if went and not fresh[l] else i, l]
            row[l], fresh[l] = -1, False
