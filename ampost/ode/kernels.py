"""The compiled explicit solver: Tsitouras' 5(4) pair, one row after the other, in numba.

Written once for every model: the right-hand side and its Jacobians arrive as compiled functions, so
numba's disk cache holds the kernel. Coefficients as in `eager`. A row carries its states and, where
gradients are wanted, one column of forward sensitivities per wanted input.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

# d state / d one of these
INITIAL, PARAMETER, EDGE_TIME, EDGE_JUMP, EDGE_RATE = range(5)

_real = types.float64
_vector = types.Array(_real, 1, "C")
_matrix = types.Array(_real, 2, "C")
_cube = types.Array(_real, 3, "C")
_whole = types.Array(types.int64, 1, "C")
_table = types.Array(types.int64, 2, "C")
_flags = types.Array(types.boolean, 2, "C")

RIGHT_HAND_SIDE = types.int64(_real, _vector, _vector, _vector)
JACOBIAN = types.int64(_real, _vector, _vector, _matrix, _matrix)
_SIGNATURE = types.void(
    types.FunctionType(RIGHT_HAND_SIDE),
    types.FunctionType(JACOBIAN),
    _real,
    _matrix,
    _matrix,
    _matrix,
    _flags,
    _matrix,
    _table,
    _matrix,
    _matrix,
    _real,
    types.int64,
    _whole,
    _whole,
    _vector,
    _cube,
    _cube,
    _matrix,
    _whole,
    _whole,
    types.int64,
    types.int64,
)


@njit(inline="always")
def _slope(f, jac, t, z, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, out):
    """Slopes of states and sensitivities: S' = J S + d f / d input."""
    f(t, z, p, out)
    for i in range(n):
        out[i] += infusion[i]
    if kinds.size:
        jac(t, z, p, jac_y, jac_p)
        for c in range(kinds.size):
            base = n + c * n
            for i in range(n):
                total = 0.0
                for j in range(n):
                    total += jac_y[i, j] * z[base + j]
                if kinds[c] == PARAMETER:
                    total += jac_p[i, index[c]]
                elif kinds[c] == EDGE_RATE and index[c] < edge and target[index[c]] == i:
                    total += 1.0
                out[base + i] = total


@njit(inline="always")
def _size(value, scale_from, n, columns, rtol, atol):
    """Largest root mean square, over states and each sensitivity column, of value / tolerance."""
    worst = 0.0
    for c in range(columns):
        total = 0.0
        for i in range(c * n, (c + 1) * n):
            part = value[i] / (atol[c] + rtol * abs(scale_from[i]))
            total += part * part
        worst = max(worst, total / n)
        if total != total:
            return np.inf
    return math.sqrt(worst)


@njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def explicit(
    f,
    jac,
    start,
    begin,
    parameters,
    times,
    after_dose,
    edge_time,
    edge_target,
    edge_jump,
    edge_rate,
    rtol,
    max_steps,
    kinds,
    index,
    atol,
    states,
    weights,
    gradient,
    status,
    steps,
    first,
    last,
):
    """Solve rows first to last: `states` (row, time, state) and `status` are written.

    `times` are sorted, those after a dose behind those before it. With sensitivities (`kinds`,
    `index` of each column) `gradient` (row, column) collects the sum of `weights` (row, time, state)
    times the sensitivity. `atol` holds the absolute tolerance of states and of each column.
    """
    n, m, edges, looks = begin.shape[1], parameters.shape[1], edge_time.shape[1], times.shape[1]
    columns = kinds.size + 1
    size = n * columns
    k1, k2, k3 = np.empty(size), np.empty(size), np.empty(size)
    k4, k5, k6, k7 = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    y, trial, wrong, wide = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    infusion, seen = np.zeros(n), np.empty(size)
    jac_y, jac_p = np.zeros((n, n)), np.zeros((n, m))
    by_time = False
    for c in range(kinds.size):
        by_time = by_time or kinds[c] == EDGE_TIME
    if looks == 0:
        return
    for r in range(first, last):
        p, target = parameters[r], edge_target[r]
        t, edge, look, taken, state_of = start, 0, 0, 0, 0
        for i in range(size):
            y[i] = 0.0
        for i in range(n):
            y[i] = begin[r, i]
            infusion[i] = 0.0
        for c in range(kinds.size):
            gradient[r, c] = 0.0
            if kinds[c] == INITIAL:
                y[n + c * n + index[c]] = 1.0
        for j in range(looks):
            for i in range(n):
                states[r, j, i] = np.nan
        h = 0.0
        fresh = True  # at the start and after each edge
        end = times[r, looks - 1]
        while True:
            if fresh:
                # what is seen now before the jump, the jump, what is seen after it
                for stage in range(2):
                    jumps = edge < edges and edge_time[r, min(edge, edges - 1)] <= t
                    while look < looks and times[r, look] <= t and not (jumps and after_dose[r, look]):
                        for i in range(n):
                            states[r, look, i] = y[i]
                            for c in range(kinds.size):
                                if weights[r, look, i] != 0.0:
                                    gradient[r, c] += weights[r, look, i] * y[n + c * n + i]
                        look += 1
                    if stage == 0:
                        while edge < edges and edge_time[r, edge] <= t:
                            if by_time:
                                _slope(
                                    f, jac, t, y, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k1
                                )
                            y[target[edge]] += edge_jump[r, edge]
                            infusion[target[edge]] += edge_rate[r, edge]
                            for c in range(kinds.size):
                                if kinds[c] == EDGE_JUMP and index[c] == edge:
                                    y[n + c * n + target[edge]] += 1.0
                            edge += 1
                            if by_time:
                                _slope(
                                    f, jac, t, y, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k2
                                )
                                for c in range(kinds.size):
                                    if kinds[c] == EDGE_TIME and index[c] == edge - 1:
                                        for i in range(n):
                                            y[n + c * n + i] += k1[i] - k2[i]
                if look >= looks:
                    break
                _slope(f, jac, t, y, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k1)
                ok = True
                for i in range(n):
                    ok = ok and math.isfinite(k1[i]) and math.isfinite(y[i])
                if not ok:
                    state_of = 2
                    break
                d0, d1 = _size(y, y, n, 1, rtol, atol), _size(k1, y, n, 1, rtol, atol)
                h = 0.01 * d0 / d1 if d0 > 1e-5 and d1 > 1e-5 else 1e-3 * (end - t)
                h = min(h, end - t)
                fresh = False
            stop = end
            if edge < edges and edge_time[r, edge] < end:
                stop = edge_time[r, edge]
            room = stop - t
            clipped = h >= room * (1 - 1e-9)
            s = room if clipped else h
            for i in range(size):
                wide[i] = y[i] + s * 0.161 * k1[i]
            _slope(f, jac, t + 0.161 * s, wide, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k2)
            for i in range(size):
                wide[i] = y[i] + s * (-0.008480655492356989 * k1[i] + 0.335480655492357 * k2[i])
            _slope(f, jac, t + 0.327 * s, wide, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k3)
            for i in range(size):
                wide[i] = y[i] + s * (
                    2.8971530571054935 * k1[i] - 6.359448489975075 * k2[i] + 4.3622954328695815 * k3[i]
                )
            _slope(f, jac, t + 0.9 * s, wide, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k4)
            for i in range(size):
                wide[i] = y[i] + s * (
                    5.325864828439257 * k1[i]
                    - 11.748883564062828 * k2[i]
                    + 7.4955393428898365 * k3[i]
                    - 0.09249506636175525 * k4[i]
                )
            _slope(
                f,
                jac,
                t + 0.9800255409045097 * s,
                wide,
                p,
                infusion,
                edge,
                target,
                n,
                kinds,
                index,
                jac_y,
                jac_p,
                k5,
            )
            for i in range(size):
                wide[i] = y[i] + s * (
                    5.86145544294642 * k1[i]
                    - 12.92096931784711 * k2[i]
                    + 8.159367898576159 * k3[i]
                    - 0.071584973281401 * k4[i]
                    - 0.028269050394068383 * k5[i]
                )
            _slope(f, jac, t + s, wide, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k6)
            for i in range(size):
                trial[i] = y[i] + s * (
                    0.09646076681806523 * k1[i]
                    + 0.01 * k2[i]
                    + 0.4798896504144996 * k3[i]
                    + 1.379008574103742 * k4[i]
                    - 3.290069515436081 * k5[i]
                    + 2.324710524099774 * k6[i]
                )
            _slope(f, jac, t + s, trial, p, infusion, edge, target, n, kinds, index, jac_y, jac_p, k7)
            for i in range(size):
                wrong[i] = s * (
                    -0.00178001105222577714 * k1[i]
                    - 0.0008164344596567469 * k2[i]
                    + 0.007880878010261995 * k3[i]
                    - 0.1447110071732629 * k4[i]
                    + 0.5823571654525552 * k5[i]
                    - 0.45808210592918697 * k6[i]
                    + 0.015151515151515152 * k7[i]
                )
                wide[i] = max(abs(y[i]), abs(trial[i]))
            error = _size(wrong, wide, n, columns, rtol, atol)
            taken += 1
            if not error <= 1.0:
                factor = 0.2 if not math.isfinite(error) else max(0.2, 0.9 * error**-0.2)
                h = s * factor
                if h <= 1e-14 * max(abs(t), abs(end)):
                    state_of = 2
                    break
                if taken >= max_steps:
                    state_of = 1
                    break
                continue
            new = stop if clipped else t + s
            at_edge = edge < edges and edge_time[r, edge] <= new
            while look < looks and times[r, look] <= new:
                if at_edge and after_dose[r, look] and times[r, look] >= new:
                    break
                x = min(max((times[r, look] - t) / s, 0.0), 1.0)
                x2 = x * x
                b1 = (
                    -1.0530884977290216
                    * x
                    * (x - 1.3299890189751412)
                    * (x2 - 1.4364028541716351 * x + 0.7139816917074209)
                )
                b2 = 0.1017 * x2 * (x2 - 2.1966568338249754 * x + 1.2949852507374631)
                b3 = 2.490627285651252793 * x2 * (x2 - 2.38535465472061657 * x + 1.57803468208092486)
                b4 = -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x2
                b5 = 47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x2
                b6 = -34.87065786149660974 * (x - 1.2) * (x - 2.0 / 3.0) * x2
                b7 = 2.5 * (x - 1.0) * (x - 0.6) * x2
                for i in range(size):
                    seen[i] = y[i] + s * (
                        b1 * k1[i] + b2 * k2[i] + b3 * k3[i] + b4 * k4[i] + b5 * k5[i] + b6 * k6[i] + b7 * k7[i]
                    )
                for i in range(n):
                    states[r, look, i] = seen[i]
                    for c in range(kinds.size):
                        if weights[r, look, i] != 0.0:
                            gradient[r, c] += weights[r, look, i] * seen[n + c * n + i]
                look += 1
            if look >= looks:
                break
            t = new
            for i in range(size):
                y[i] = trial[i]
                k1[i] = k7[i]
            grown = s * min(5.0, 0.9 * max(error, 1e-10) ** -0.2)
            h = max(grown, h) if clipped else grown
            if taken >= max_steps:
                state_of = 1
                break
            fresh = at_edge
        status[r] = state_of
        steps[r] = taken


@njit(types.void(types.FunctionType(RIGHT_HAND_SIDE), _vector, _matrix, _matrix, _matrix), cache=True)
def slopes_at(f, t, y, p, out):
    """Slopes (point, state) at points, to compare with torch's."""
    for k in range(len(t)):
        f(t[k], y[k], p[k], out[k])


@njit(types.void(types.FunctionType(JACOBIAN), _vector, _matrix, _matrix, _cube, _cube), cache=True)
def jacobians_at(jac, t, y, p, by_state, by_parameter):
    """Jacobians (point, slope, input) at points, to compare with torch's."""
    for k in range(len(t)):
        jac(t[k], y[k], p[k], by_state[k], by_parameter[k])
