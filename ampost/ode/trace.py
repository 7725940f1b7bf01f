"""Torch right-hand side -> scalar operations -> their derivatives -> source of a scalar function.

The right-hand side runs once on symbols. Each operation becomes a node of a graph in which equal
nodes are shared; constants fold. Derivatives are written by forward mode on the same graph, so that
a function and its Jacobian share what they have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ampost.errors import AmpostError


class NotTraceableError(AmpostError):
    """A right-hand side does something that has no scalar form; the torch solver still runs it."""


@dataclass(frozen=True)
class Node:
    """`operation` of the nodes `arguments`; `value` is set for constants, `operation` names inputs."""

    operation: str
    arguments: tuple[int, ...] = ()
    value: float | None = None


# How an operation is written in the compiled function, and how it is folded on constants.
_WRITTEN = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "{0} ** {1}",
    "neg": "-{0}",
    "abs": "abs({0})",
    "maximum": "{0} if {0} >= {1} or {0} != {0} else {1}",
    "minimum": "{0} if {0} <= {1} or {0} != {0} else {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} and {1}",
    "or": "{0} or {1}",
    "not": "not {0}",
    "where": "{1} if {0} else {2}",
    "floor": "math.floor({0})",
    **{
        name: f"math.{name}({{0}})"
        for name in (
            *("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan"),
            *("sinh", "cosh", "tanh", "erf"),
        )
    },
}
_CONDITIONS = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}


class Graph:
    """Nodes of one right-hand side; equal nodes are one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._found: dict[Node, int] = {}

    def add(self, node: Node) -> int:
        """The number of `node`, which is appended where it is new."""
        if node not in self._found:
            self._found[node] = len(self.nodes)
            self.nodes.append(node)
        return self._found[node]

    def constant(self, value: float) -> int:
        """The node of a number."""
        return self.add(Node("constant", (), float(value)))

    def value(self, index: int) -> float | None:
        """The number of a constant node, None for any other."""
        return self.nodes[index].value

    def do(self, operation: str, *arguments: int) -> int:
        """The node of an operation, simplified where an argument is a neutral constant."""
        short = self._shorter(operation, arguments)
        return self.add(Node(operation, arguments)) if short is None else short

    def _shorter(self, operation: str, arguments: tuple[int, ...]) -> int | None:
        known = [self.value(a) for a in arguments]
        if all(v is not None for v in known):
            return self._folded(operation, [v for v in known if v is not None])
        first, last = arguments[0], arguments[-1]
        rules: dict[tuple[str, int, float], Callable[[], int]] = {
            ("add", 0, 0.0): lambda: last,
            ("add", 1, 0.0): lambda: first,
            ("sub", 1, 0.0): lambda: first,
            ("sub", 0, 0.0): lambda: self.do("neg", last),
            ("mul", 0, 0.0): lambda: first,
            ("mul", 1, 0.0): lambda: last,
            ("mul", 0, 1.0): lambda: last,
            ("mul", 1, 1.0): lambda: first,
            ("mul", 0, -1.0): lambda: self.do("neg", last),
            ("mul", 1, -1.0): lambda: self.do("neg", first),
            ("div", 0, 0.0): lambda: first,
            ("div", 1, 1.0): lambda: first,
            ("pow", 1, 1.0): lambda: first,
            ("pow", 1, 0.0): lambda: self.constant(1.0),
            ("pow", 1, 2.0): lambda: self.do("mul", first, first),
            ("pow", 1, 3.0): lambda: self.do("mul", first, self.do("mul", first, first)),
            ("pow", 1, 0.5): lambda: self.do("sqrt", first),
            ("pow", 1, -1.0): lambda: self.do("div", self.constant(1.0), first),
        }
        for place, number in enumerate(known):
            if number is not None and (operation, place, number) in rules:
                return rules[operation, place, number]()
        if operation == "where" and known[0] is not None:
            return arguments[1] if known[0] else arguments[2]
        if operation == "where" and arguments[1] == arguments[2]:
            return arguments[1]
        return None

    def _folded(self, operation: str, known: list[float]) -> int | None:
        names = {f"v{k}": v for k, v in enumerate(known)}
        text = _WRITTEN[operation].format(*names)
        try:
            return self.constant(float(eval(text, {"math": math, "__builtins__": {"abs": abs}}, names)))
        except (ArithmeticError, ValueError, TypeError):
            return None

    def derivative(self, index: int, along: Mapping[int, int], known: dict[int, int]) -> int:
        """The node of the derivative of `index` where input node i moves at the rate `along[i]`."""
        for k in range(index + 1):  # arguments come before what uses them
            if k in known:
                continue
            node = self.nodes[k]
            if node.operation in ("constant", "input") or node.operation in _CONDITIONS:
                known[k] = along.get(k, self.constant(0.0))
            else:
                known[k] = self._chain(node, k, known)
        return known[index]

    def _chain(self, node: Node, k: int, known: Mapping[int, int]) -> int:
        do, constant, a = self.do, self.constant, node.arguments
        slopes = [known[i] for i in a]
        zero = constant(0.0)
        if all(s == zero for s in slopes):
            return zero
        if node.operation == "where":
            return do("where", a[0], slopes[1], slopes[2])
        if node.operation in ("maximum", "minimum"):
            first = do("ge" if node.operation == "maximum" else "le", a[0], a[1])
            return do("where", first, slopes[0], slopes[1])
        total = zero
        for place, slope in enumerate(slopes):
            if slope != zero:
                total = do("add", total, do("mul", slope, self._partial(node, k, place)))
        return total

    def _partial(self, node: Node, k: int, place: int) -> int:
        """The node of the derivative of operation `node`, whose value is node k, by its argument `place`."""
        do, one, x = self.do, self.constant(1.0), node.arguments[0]
        other = node.arguments[-1]
        if node.operation == "pow":
            if place == 0:
                return do("mul", other, do("pow", x, do("sub", other, one)))
            return do("where", do("eq", x, self.constant(0.0)), self.constant(0.0), do("mul", k, do("log", x)))
        if node.operation == "div":
            return do("div", one, other) if place == 0 else do("neg", do("div", k, other))

        def square(i: int) -> int:
            return do("mul", i, i)

        rules: dict[str, Callable[[], int]] = {
            "add": lambda: one,
            "sub": lambda: one if place == 0 else self.constant(-1.0),
            "mul": lambda: other if place == 0 else x,
            "neg": lambda: self.constant(-1.0),
            "abs": lambda: do(
                "where",
                do("gt", x, self.constant(0.0)),
                one,
                do("where", do("lt", x, self.constant(0.0)), self.constant(-1.0), self.constant(0.0)),
            ),
            "floor": lambda: self.constant(0.0),
            "exp": lambda: k,
            "expm1": lambda: do("add", k, one),
            "log": lambda: do("div", one, x),
            "log1p": lambda: do("div", one, do("add", one, x)),
            "sqrt": lambda: do("div", self.constant(0.5), k),
            "sin": lambda: do("cos", x),
            "cos": lambda: do("neg", do("sin", x)),
            "tan": lambda: do("add", one, square(k)),
            "asin": lambda: do("div", one, do("sqrt", do("sub", one, square(x)))),
            "acos": lambda: do("div", self.constant(-1.0), do("sqrt", do("sub", one, square(x)))),
            "atan": lambda: do("div", one, do("add", one, square(x))),
            "sinh": lambda: do("cosh", x),
            "cosh": lambda: do("sinh", x),
            "tanh": lambda: do("sub", one, square(k)),
            "erf": lambda: do("mul", self.constant(2.0 / math.sqrt(math.pi)), do("exp", do("neg", square(x)))),
        }
        return rules[node.operation]()


class Symbol:
    """A scalar that writes down what is done to it; stands in for a torch tensor."""

    __array_ufunc__ = None  # numpy functions raise in place of returning arrays of symbols

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", str(function))
        written = _TORCH.get(name)
        if written is None or any(isinstance(a, torch.Tensor) for a in arguments):
            raise NotTraceableError(
                f"torch.{name} with a captured tensor"
                if written
                else f"torch.{name} has no scalar form in the compiled engine"
            )
        return written(*arguments, **(named or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in _TORCH:
            raise NotTraceableError(f"the tensor method or attribute .{name} has no scalar form")
        written = _TORCH[name]
        return lambda *arguments, **named: written(self, *arguments, **named)

    def __bool__(self) -> bool:
        raise NotTraceableError(
            "a branch on a value (if, min, max, and, or); use torch.where, torch.minimum or torch.maximum"
        )

    def __float__(self) -> float:
        raise NotTraceableError(
            "a state, parameter or time is turned into a Python number; use torch functions"
        )

    __int__ = __float__
    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Symbol:
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _apply("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return _apply("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return _apply("pow", other, self)

    def __neg__(self) -> Symbol:
        return _apply("neg", self)

    def __abs__(self) -> Symbol:
        return _apply("abs", self)

    def __lt__(self, other: Any) -> Symbol:
        return _apply("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return _apply("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return _apply("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return _apply("ge", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return _apply("eq", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return _apply("ne", self, other)

    def __and__(self, other: Any) -> Symbol:
        return _apply("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return _apply("or", self, other)

    def __invert__(self) -> Symbol:
        return _apply("not", self)


def _apply(operation: str, *arguments: Any) -> Symbol:
    graph = next(a.graph for a in arguments if isinstance(a, Symbol))
    numbers = []
    for argument in arguments:
        if isinstance(argument, Symbol):
            numbers.append(argument.index)
        elif isinstance(argument, bool | int | float):
            numbers.append(graph.constant(argument))
        else:
            raise NotTraceableError(
                f"{operation} with a captured {type(argument).__name__.lower()}, which should be a "
                f"parameter of odeint"
            )
    return Symbol(graph, graph.do(operation, *numbers))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Symbol:
    x = x if min is None else _apply("maximum", x, min)
    return x if max is None else _apply("minimum", x, max)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    scaled = x * beta
    return _apply("where", scaled > threshold, x, _apply("log1p", _apply("exp", scaled)) / beta)


def _named(operation: str) -> Callable[..., Symbol]:
    return lambda *arguments: _apply(operation, *arguments)


_TORCH: dict[str, Callable[..., Any]] = {
    **{name: _named(name) for name in _WRITTEN if name not in ("and", "or", "not")},
    "multiply": _named("mul"),
    "divide": _named("div"),
    "true_divide": _named("div"),
    "subtract": _named("sub"),
    "negative": _named("neg"),
    "absolute": _named("abs"),
    "max": _named("maximum"),
    "min": _named("minimum"),
    "less": _named("lt"),
    "less_equal": _named("le"),
    "greater": _named("gt"),
    "greater_equal": _named("ge"),
    "logical_and": _named("and"),
    "logical_or": _named("or"),
    "logical_not": _named("not"),
    "arcsin": _named("asin"),
    "arccos": _named("acos"),
    "arctan": _named("atan"),
    "reciprocal": lambda x: 1.0 / x,
    "square": lambda x: x * x,
    "rsqrt": lambda x: 1.0 / _apply("sqrt", x),
    "exp2": lambda x: 2.0**x,
    "log2": lambda x: _apply("log", x) / math.log(2.0),
    "log10": lambda x: _apply("log", x) / math.log(10.0),
    "sigmoid": lambda x: 1.0 / (1.0 + _apply("exp", -x)),
    "softplus": _softplus,
    "relu": lambda x: _apply("maximum", x, 0.0),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda x, min: _clamp(x, min=min),
    "clamp_max": lambda x, max: _clamp(x, max=max),
    "zeros_like": lambda x: 0.0,
    "ones_like": lambda x: 1.0,
    "hypot": lambda x, y: _apply("sqrt", x * x + y * y),
    # what Python's operators call where a number or tensor comes first
    "__radd__": lambda x, y: y + x,
    "__rsub__": lambda x, y: y - x,
    "__rmul__": lambda x, y: y * x,
    "__rtruediv__": lambda x, y: y / x,
    "__rpow__": lambda x, y: y**x,
}


@dataclass(frozen=True)
class Traced:
    """The graph of a right-hand side: inputs t, states, parameters; `slopes` are its outputs."""

    graph: Graph
    states: tuple[int, ...]
    parameters: tuple[int, ...]
    time: int
    slopes: tuple[int, ...]

    def jacobian(self, inputs: Sequence[int]) -> list[list[int]]:
        """Nodes of d slope / d input, (slope, input)."""
        one = self.graph.constant(1.0)
        columns = []
        for index in inputs:
            known: dict[int, int] = {}
            columns.append([self.graph.derivative(s, {index: one}, known) for s in self.slopes])
        return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in self.slopes]


def trace(rhs: Callable[[Any, Any, Any], Any], states: Sequence[str], parameters: Sequence[str]) -> Traced:
    """Run `rhs` once on symbols.

    Raises:
        NotTraceableError: it does something without a scalar form.
    """
    graph = Graph()

    def symbol(k: int) -> Symbol:
        return Symbol(graph, graph.add(Node("input", (k,))))

    t = symbol(0)
    y = [symbol(1 + k) for k in range(len(states))]
    p = [symbol(1 + len(states) + k) for k in range(len(parameters))]
    try:
        answer = rhs(
            t,
            SimpleNamespace(**dict(zip(states, y, strict=True))),
            SimpleNamespace(**dict(zip(parameters, p, strict=True))),
        )
    except (TypeError, AttributeError) as error:
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error
    slopes = []
    for name in states:
        slope = answer[name]
        if isinstance(slope, torch.Tensor):
            raise NotTraceableError(f"the slope of {name} is a captured tensor")
        slopes.append(slope.index if isinstance(slope, Symbol) else graph.constant(slope))
    return Traced(graph, tuple(s.index for s in y), tuple(s.index for s in p), t.index, tuple(slopes))


def source(name: str, graph: Graph, outputs: Mapping[str, int], reads: Mapping[int, str], head: str) -> str:
    """Python source of a function that assigns `outputs` (target text -> node), `reads` naming inputs."""
    needed: set[int] = set()
    stack = list(outputs.values())
    while stack:
        k = stack.pop()
        if k not in needed:
            needed.add(k)
            if graph.nodes[k].operation != "input":
                stack.extend(graph.nodes[k].arguments)

    def text(k: int) -> str:
        value = graph.value(k)
        if value is None:
            return f"v{k}"
        return f"({value!r})" if math.isfinite(value) else f"float('{value}')"

    lines = [f"def {name}({head}):"]
    for k in sorted(needed):
        node = graph.nodes[k]
        if node.operation == "input":
            lines.append(f"    v{k} = {reads[k]}")
        elif node.operation != "constant":
            lines.append(f"    v{k} = {_WRITTEN[node.operation].format(*map(text, node.arguments))}")
    lines.extend(f"    {target} = {text(k)}" for target, k in outputs.items())
    return "\n".join([*lines, "    return 0", ""])
