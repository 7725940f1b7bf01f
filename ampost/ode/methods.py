"""The methods: one step of each, written over scalars, and its derivative with respect to anything.

A method is asked through a `Scalars`, which computes slopes and Jacobians wherever it is told to. What
is written here runs once, on symbols: it becomes the straight line of operations that `machine`
compiles together with the right-hand side.

An unknown is a list with one symbol per state. Beside the states there may be columns of sensitivities
s = d y / d (some input). They obey s' = A(t) s + b(t) along the solution and take the steps of the states,
so that they are as accurate as these; for an explicit method this is the derivative of its very steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Vector = list[Any]
Matrix = list[list[Any]]  # of symbols, or 0.0 where an entry is zero by structure and left out of sums


class Scalars(Protocol):
    """A right-hand side at any point, on symbols."""

    def slopes(self, t: Any, y: Vector) -> Vector: ...
    def by_state(self, t: Any, y: Vector) -> Matrix: ...
    def by_parameter(self, t: Any, y: Vector) -> Matrix: ...
    def by_time(self, t: Any, y: Vector) -> Vector: ...
    def second(self, t: Any, y: Vector) -> tuple[Matrix, Matrix]: ...
    def by_time_and(self, t: Any, y: Vector) -> tuple[Matrix, Matrix]: ...


@dataclass(frozen=True)
class Step:
    """What one step gives: the new states, the stages, the error, and a measure of stiffness.

    `kept` is what the derivative of the step needs again. `stiffness` is a pair of vectors whose norms'
    ratio estimates step size times the largest eigenvalue; None where the method does not care. `sound` is
    false where the step's equations could not be solved well and a shorter one is to be tried.
    """

    new: Vector
    stages: list[Vector]
    wrong: Vector
    kept: Vector
    stiffness: tuple[Vector, Vector] | None = None
    sound: Any = None


@dataclass(frozen=True)
class Linear:
    """The equation s' = A(t) s + b(t) of a column along the step that the states took.

    `at_stage[i]` is A at stage i, `forcing[i]` what drives a column there, one for each parameter.
    `drift` is dA/dt at the start, for a method that asks for it (its db/dt is in the forcing). A method
    may have both multiplied by the step, and by its square.
    """

    at_stage: list[Matrix]
    drift: Matrix
    forcing: list[Matrix]


@dataclass(frozen=True)
class Method:
    """A one-step method with its own interpolant.

    `step(f, t, s, y, first)` takes the slope at the start, which `reuses_last` takes from the last step's
    last stage. `linear(f, t, s, y, new, stages)` and `column(s, column, at_stage, drift, forcing, kept)`
    are its derivative; `between(x, y, new, stages, s)` is the solution at the fraction x of a step.
    """

    name: str
    stages: int
    reuses_last: bool
    step: Callable[[Scalars, Any, Any, Vector, Vector], Step]
    linear: Callable[[Scalars, Any, Any, Vector, Vector, list[Vector]], Linear]
    column: Callable[[Any, Vector, list[Matrix], Matrix, list[Vector], Vector], tuple[Vector, list[Vector]]]
    between: Callable[[Any, Vector, Vector, list[Vector], Any], Vector]


def _absent(value: Any) -> bool:
    return isinstance(value, float) and value == 0.0


def _combined(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """Sum of weight times vector, each entry a symbol."""
    out = []
    for entries in zip(*vectors, strict=True):
        total: Any = 0.0
        for weight, entry in zip(weights, entries, strict=False):
            if weight != 0.0:
                total = total + weight * entry
        out.append(total)
    return out


def _times(matrix: Matrix, vector: Vector) -> Vector:
    out = []
    for row in matrix:
        total: Any = 0.0
        for a, b in zip(row, vector, strict=True):
            if not _absent(a) and not _absent(b):
                total = total + a * b
        out.append(total)
    return out


def _plus(*vectors: Vector) -> Vector:
    out = vectors[0]
    for other in vectors[1:]:
        out = [a + b for a, b in zip(out, other, strict=True)]
    return out


def _scaled(factor: Any, vector: Vector) -> Vector:
    return [factor * a for a in vector]


# ---------------------------------------------------------------------------- Tsitouras' 5(4) pair
# Ch. Tsitouras, Computers & Mathematics with Applications 62 (2011) 770-775. Explicit; the last stage
# of a step is the first of the next.

TSITOURAS_C = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
TSITOURAS_A: tuple[tuple[float, ...], ...] = (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (
        *(0.09646076681806523, 0.01, 0.4798896504144996),
        *(1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
)
TSITOURAS_ERROR = (
    *(-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629),
    *(0.5823571654525552, -0.45808210592918697, 0.015151515151515152),
)


# coefficients of x, x^2, x^3, x^4 in the weight of each slope; printed to fewer digits in the paper
TSITOURAS_DENSE = (
    (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
    (0.0, 0.1317, -0.2234, 0.1017),
    (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
    (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
    (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
    (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
    (0.0, 1.5, -4.0, 2.5),
)


def tsitouras_weights(x: Any) -> tuple[Any, ...]:
    """Weights of the seven slopes at the fraction `x` of a step (fourth order)."""
    return tuple(x * (a + x * (b + x * (c + x * d))) for a, b, c, d in TSITOURAS_DENSE)


def _tsitouras_inner(s: Any, y: Vector, stages: list[Vector], k: int) -> Vector:
    return _plus(y, _scaled(s, _combined(TSITOURAS_A[k], stages[:k]))) if k else y


def _tsitouras_step(f: Scalars, t: Any, s: Any, y: Vector, first: Vector) -> Step:
    stages, inner = [first], [y]
    for k in range(1, 7):
        inner.append(_tsitouras_inner(s, y, stages, k))
        stages.append(f.slopes(t + TSITOURAS_C[k] * s, inner[-1]))
    wrong = _scaled(s, _combined(TSITOURAS_ERROR, stages))
    # both last stages stand at the end of the step (E. Hairer and G. Wanner, Solving ODEs II, IV.2)
    turn = _scaled(s, [a - b for a, b in zip(stages[6], stages[5], strict=True)])
    apart = [a - b for a, b in zip(inner[6], inner[5], strict=True)]
    return Step(inner[6], stages, wrong, [], (turn, apart))


def _tsitouras_linear(f: Scalars, t: Any, s: Any, y: Vector, new: Vector, stages: list[Vector]) -> Linear:
    points = [(t + TSITOURAS_C[k] * s, _tsitouras_inner(s, y, stages, k)) for k in range(7)]
    nothing: Matrix = [[0.0] * len(y) for _ in y]
    return Linear([f.by_state(*q) for q in points], nothing, [f.by_parameter(*q) for q in points])


def _tsitouras_column(
    s: Any,
    column: Vector,
    at_stage: list[Matrix],
    drift: Matrix,
    forcing: list[Vector],
    kept: Vector,
) -> tuple[Vector, list[Vector]]:
    stages: list[Vector] = []
    inner = column
    for k in range(7):
        inner = _tsitouras_inner(s, column, stages, k)
        stages.append(_plus(_times(at_stage[k], inner), forcing[k]))
    return inner, stages


def _tsitouras_between(x: Any, y: Vector, new: Vector, stages: list[Vector], s: Any) -> Vector:
    weights = tsitouras_weights(x)
    return [
        start + s * sum((w * k for w, k in zip(weights[1:], slopes[1:], strict=True)), weights[0] * slopes[0])
        for start, *slopes in zip(y, *stages, strict=True)
    ]


tsitouras = Method(
    "tsitouras", 7, True, _tsitouras_step, _tsitouras_linear, _tsitouras_column, _tsitouras_between
)

# ------------------------------------------------------------------------------------------ Rodas5P
# G. Steinebach, BIT Numerical Mathematics 63 (2023) 27: a stiffly accurate Rosenbrock method of order
# 5(4), linearly implicit: one Jacobian and one factorisation a step, nothing to iterate.

GAMMA = 0.21193756319429014
RODAS_C = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
RODAS_D = (
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
)
RODAS_A: tuple[tuple[float, ...], ...] = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
)  # the last three points, the end of the step among them, are each the one before plus its stage
RODAS_COUPLING: tuple[tuple[float, ...], ...] = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (
        *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
        *(34.28646028294783, -19.097331116725623, -28.087943162872662),
    ),
    (
        *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
        *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
    ),
)
RODAS_DENSE = (
    (
        *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
        *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
    ),
    (
        *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
        *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
    ),
    (
        *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
        *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
    ),
)


class _Factors:
    """A matrix as triangles, without exchange of rows: entries that are zero by structure stay out.

    The pivots are taken on the diagonal, in the order that fills in least. For 1/γ - h J they are far from
    zero unless h is too long for the accuracy; a step with one that is not is tried again, shorter.
    """

    def __init__(self, order: list[int], pivots: Vector, lower: Matrix, upper: Matrix) -> None:
        self.order, self.pivots, self.lower, self.upper = order, pivots, lower, upper

    @classmethod
    def of(cls, matrix: Matrix) -> _Factors:
        """Eliminate column by column; `pivots` are the inverses of the diagonal."""
        size = len(matrix)
        work = [list(row) for row in matrix]
        lower: Matrix = [[0.0] * size for _ in range(size)]
        pivots: Vector = [0.0] * size
        order: list[int] = []
        left = set(range(size))
        while left:
            k = min(left, key=lambda i: (_fill(work, i, left), i))
            left.remove(k)
            order.append(k)
            pivots[k] = 1.0 / work[k][k]
            for i in sorted(left):
                if _absent(work[i][k]):
                    continue
                lower[i][k] = work[i][k] * pivots[k]
                for j in sorted(left):
                    if not _absent(work[k][j]):
                        work[i][j] = work[i][j] - lower[i][k] * work[k][j]
        place = {k: n for n, k in enumerate(order)}
        upper = [[v if place[j] > place[i] else 0.0 for j, v in enumerate(row)] for i, row in enumerate(work)]
        return cls(order, pivots, lower, upper)

    def solve(self, right: Vector) -> Vector:
        """The solution for one right side."""
        x = list(right)
        for n, k in enumerate(self.order):
            for i in self.order[n + 1 :]:
                if not _absent(self.lower[i][k]):
                    x[i] = x[i] - self.lower[i][k] * x[k]
        for n in reversed(range(len(self.order))):
            i = self.order[n]
            for j in self.order[n + 1 :]:
                if not _absent(self.upper[i][j]):
                    x[i] = x[i] - self.upper[i][j] * x[j]
            x[i] = x[i] * self.pivots[i]
        return x

    @property
    def entries(self) -> Vector:
        """All numbers in it, in a fixed order, to be kept and given to `again`."""
        return [*self.pivots, *(v for matrix in (self.lower, self.upper) for row in matrix for v in row)]

    @classmethod
    def again(cls, entries: Vector, order: list[int]) -> _Factors:
        """From `entries` and the order of the pivots."""
        size = len(order)
        rows = [entries[size + size * k : size + size * (k + 1)] for k in range(2 * size)]
        return cls(order, entries[:size], rows[:size], rows[size:])


def _fill(work: Matrix, k: int, left: set[int]) -> int:
    down = sum(not _absent(work[i][k]) for i in left if i != k)
    across = sum(not _absent(work[k][j]) for j in left if j != k)
    return down * across


def _rodas_points(y: Vector, stages: list[Vector], points: list[Vector]) -> None:
    """Add the next inner point to `points`."""
    k = len(points)
    if k < len(RODAS_A):
        points.append(_plus(y, _combined(RODAS_A[k], stages)) if k else y)
    else:
        points.append(_plus(points[-1], stages[k - 1]))


def _rodas_step(f: Scalars, t: Any, s: Any, y: Vector, first: Vector) -> Step:
    system = [[0.0 if _absent(a) else -s * a for a in row] for row in f.by_state(t, y)]
    for k, row in enumerate(system):
        row[k] = 1.0 / GAMMA + row[k]
    factors = _Factors.of(system)
    by_time = [0.0 if _absent(a) else s * s * a for a in f.by_time(t, y)]
    stages: list[Vector] = []
    points: list[Vector] = []
    for k in range(8):
        _rodas_points(y, stages, points)
        right = _scaled(s, f.slopes(t + RODAS_C[k] * s, points[k]))
        if k:
            right = _plus(right, _combined(RODAS_COUPLING[k], stages))
        if k < len(RODAS_D):
            right = [a if _absent(b) else a + RODAS_D[k] * b for a, b in zip(right, by_time, strict=True)]
        stages.append(factors.solve(right))
    _rodas_points(y, stages, points)
    sound: Any = None
    for pivot in factors.pivots:
        small = abs(pivot) < 1e10  # the inverse, of a diagonal near 1 / gamma where steps are short
        if not isinstance(small, bool):  # a constant pivot is 1 / gamma
            sound = small if sound is None else small & sound
    return Step(points[8], stages, stages[7], [*factors.entries, factors.order], None, sound)


def _rodas_linear(f: Scalars, t: Any, s: Any, y: Vector, new: Vector, stages: list[Vector]) -> Linear:
    """The method on the columns' own linear equation, its coefficients along the interpolated solution."""
    slopes = f.slopes(t, y)
    turns = [
        _added(_along(second, slopes), time)
        for second, time in zip(f.second(t, y), f.by_time_and(t, y), strict=True)
    ]
    matrices: dict[float, Matrix] = {}
    drives: dict[float, Matrix] = {}
    for c in sorted(set(RODAS_C)):
        at = y if c == 0.0 else new if c == 1.0 else _rodas_between(c, y, new, stages, s)
        matrices[c], drives[c] = _by(s, f.by_state(t + c * s, at)), f.by_parameter(t + c * s, at)
    turns = [_finite(_by(s * s, turns[0])), _finite(_by(s, turns[1]))]
    forcing = [drives[c] for c in RODAS_C]
    for k, d in enumerate(RODAS_D):
        forcing[k] = _added(forcing[k], turns[1], d)
    return Linear([matrices[c] for c in RODAS_C], turns[0], forcing)


def _finite(matrix: Matrix) -> Matrix:
    """Zero in place of what is infinite, as second derivatives of y^1.5 at 0 are: one step of lower order."""
    return [[a if _absent(a) else (abs(a) < 1e300).where(a, 0.0) for a in row] for row in matrix]


def _by(factor: Any, matrix: Matrix) -> Matrix:
    """factor x matrix, zeros by structure kept."""
    return [[0.0 if _absent(a) else factor * a for a in row] for row in matrix]


def _along(second: Matrix, direction: Vector) -> Matrix:
    """The derivative of the Jacobian times `direction`; `second` (slope x state, input)."""
    n = len(direction)
    blocks = [second[k * n : (k + 1) * n] for k in range(n)]
    return [_times([list(column) for column in zip(*block, strict=True)], direction) for block in blocks]


def _added(one: Matrix, two: Matrix, factor: Any = None) -> Matrix:
    """one + factor x two, zeros by structure kept."""

    def entry(a: Any, b: Any) -> Any:
        if _absent(b):
            return a
        b = b if factor is None else factor * b
        return b if _absent(a) else a + b

    return [[entry(a, b) for a, b in zip(r, q, strict=True)] for r, q in zip(one, two, strict=True)]


def _rodas_column(
    s: Any,
    column: Vector,
    at_stage: list[Matrix],
    drift: Matrix,
    forcing: list[Vector],
    kept: Vector,
) -> tuple[Vector, list[Vector]]:
    factors = _Factors.again(kept[:-1], kept[-1])
    stages: list[Vector] = []
    points: list[Vector] = []
    drifting = _times(drift, column)
    for k in range(8):
        _rodas_points(column, stages, points)
        right = _plus(_times(at_stage[k], points[k]), _scaled(s, forcing[k]))
        if k < len(RODAS_D):
            right = _plus(right, _scaled(RODAS_D[k], drifting))
        if k:
            right = _plus(right, _combined(RODAS_COUPLING[k], stages))
        stages.append(factors.solve(right))
    _rodas_points(column, stages, points)
    return points[8], stages


def _rodas_between(x: Any, y: Vector, new: Vector, stages: list[Vector], s: Any) -> Vector:
    left = 1.0 - x
    one, two, three = (_combined(weights, stages) for weights in RODAS_DENSE)
    return [
        left * a + x * (b + left * (p + x * (q + x * r)))
        for a, b, p, q, r in zip(y, new, one, two, three, strict=True)
    ]


rodas = Method("rodas", 8, False, _rodas_step, _rodas_linear, _rodas_column, _rodas_between)
