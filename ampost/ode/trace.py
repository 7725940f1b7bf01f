"""Torch right-hand side -> scalar operations: the function runs once, on symbols that write down what is done.

A `Rates` is what comes out: slopes as nodes of a graph, and their derivatives, written when first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from ampost.errors import AmpostError, OdeError
from ampost.ode.graph import CONDITIONS, FUNCTIONS, OPERATIONS, Graph
from ampost.ode.problem import after, line_of


class NotTraceableError(AmpostError):
    """A right-hand side does something that has no scalar form; the torch solver still runs it."""


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

    def __pos__(self) -> Symbol:
        return self

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
    **{name: _named(name) for name in (*OPERATIONS, *FUNCTIONS, *CONDITIONS - {"and", "or", "not"})},
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


class Rates:
    """Slopes of a right-hand side as nodes of `graph`, and their derivatives.

    The inputs are nodes too: `time`, `states`, `parameters`, and `signals`, three for each parameter that
    is a function of time: its value at the last breakpoint, its slope since, and when that was.
    """

    def __init__(
        self,
        rhs: Callable[[Any, Any, Any], Any],
        states: Sequence[str],
        parameters: Sequence[str],
        signals: Sequence[str] = (),
    ) -> None:
        self.graph = graph = Graph()
        self.time = graph.input(0, 0)
        self.states = [graph.input(1, k) for k in range(len(states))]
        self.parameters = [graph.input(2, k) for k in range(len(parameters))]
        self.signals = [graph.input(3, k) for k in range(3 * len(signals))]
        y = {name: Symbol(graph, k) for name, k in zip(states, self.states, strict=True)}
        p = {name: Symbol(graph, k) for name, k in zip(parameters, self.parameters, strict=True)}
        t = Symbol(graph, self.time)
        for k, name in enumerate(signals):
            value, slope, since = (Symbol(graph, i) for i in self.signals[3 * k : 3 * k + 3])
            p[name] = value + slope * (t - since)
        answer = _symbolically(lambda: rhs(t, SimpleNamespace(**y), SimpleNamespace(**p)))
        self.slopes = [_node(graph, answer[name], f"the slope of {name}") for name in states]

    @property
    def inputs(self) -> list[int]:
        """All input nodes: time, states, parameters, signals."""
        return [self.time, *self.states, *self.parameters, *self.signals]

    @cached_property
    def by_state(self) -> list[list[int]]:
        """d slope / d state."""
        return self.graph.jacobian(self.slopes, self.states)

    @cached_property
    def by_parameter(self) -> list[list[int]]:
        """d slope / d parameter."""
        return self.graph.jacobian(self.slopes, self.parameters)

    @cached_property
    def by_time(self) -> list[int]:
        """d slope / d time."""
        return [row[0] for row in self.graph.jacobian(self.slopes, [self.time])]

    @cached_property
    def second(self) -> tuple[list[list[int]], list[list[int]]]:
        """Derivatives of (d slope / d state), flat, by states and by parameters."""
        flat = [k for row in self.by_state for k in row]
        return self.graph.jacobian(flat, self.states), self.graph.jacobian(flat, self.parameters)

    @cached_property
    def by_time_and(self) -> tuple[list[list[int]], list[list[int]]]:
        """Derivatives of d slope / d time by states and by parameters."""
        return self.graph.jacobian(self.by_time, self.states), self.graph.jacobian(
            self.by_time, self.parameters
        )


class Jump:
    """An event `jump(y, p, amount)` as nodes: the new states and their derivatives."""

    def __init__(
        self, function: Callable[[Any, Any, Any], Any], states: Sequence[str], parameters: Sequence[str]
    ) -> None:
        self.graph = graph = Graph()
        self.states = [graph.input(1, k) for k in range(len(states))]
        self.parameters = [graph.input(2, k) for k in range(len(parameters))]
        self.amount = graph.input(5, 0)
        y = SimpleNamespace(**{n: Symbol(graph, k) for n, k in zip(states, self.states, strict=True)})
        p = SimpleNamespace(**{n: Symbol(graph, k) for n, k in zip(parameters, self.parameters, strict=True)})
        answer = _symbolically(lambda: function(y, p, Symbol(graph, self.amount)))
        new = after(answer, y, tuple(states), "an event")
        self.values = [_node(graph, new[n], f"the event's {n}") for n in states]
        self.by_state = graph.jacobian(self.values, self.states)
        self.by_parameter = graph.jacobian(self.values, self.parameters)
        self.by_amount = [row[0] for row in graph.jacobian(self.values, [self.amount])]


def _node(graph: Graph, value: Any, what: str) -> int:
    if isinstance(value, Symbol):
        return value.index
    if isinstance(value, torch.Tensor):
        raise NotTraceableError(f"{what} is a captured tensor, which should be a parameter of odeint")
    return graph.constant(value)


def _symbolically(call: Callable[[], Any]) -> Any:
    """What `call` returns on symbols; where it cannot, the error names the user's line."""
    try:
        return call()
    except NotTraceableError as error:
        raise NotTraceableError(f"{error}{line_of(error.__traceback__)}") from error
    except (TypeError, AttributeError, ValueError) as error:
        if "__array_ufunc__" in str(error):
            line = line_of(error.__traceback__)
            raise OdeError(
                f"numpy is called on a state, parameter or time; use torch's function{line}"
            ) from error
        raise NotTraceableError(f"{type(error).__name__}: {error}{line_of(error.__traceback__)}") from error
