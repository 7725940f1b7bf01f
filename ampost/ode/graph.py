"""Scalar operations as a graph: equal nodes are shared, constants fold, derivatives are nodes too.

A node is an operation on earlier nodes, so ascending numbers are an order in which to compute. The
derivative of a node is written in forward mode on the same graph, and shares with the function what
both have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

LANES = 8  # rows that compiled functions work on at once
CONDITIONS = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))
FUNCTIONS = (  # called by name from the C library
    *("exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "erf", "pow"),
)
OPERATIONS = (
    *("add", "sub", "mul", "div", "neg", "abs", "sqrt", "floor", "sigmoid"),
    *("maximum", "minimum", "where"),
)

_FOLD: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "abs": abs,
    "floor": math.floor,
    "sigmoid": lambda a: 1.0 / (1.0 + math.exp(-a)),
    "maximum": max,
    "minimum": min,
    "where": lambda c, a, b: a if c else b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
    **{name: getattr(math, name) for name in (*FUNCTIONS, "sqrt")},
}


@dataclass(frozen=True)
class Node:
    """`operation` on the nodes `arguments`; a constant has its `value`, an input its place."""

    operation: str
    arguments: tuple[int, ...] = ()
    value: float | None = None


class Graph:
    """Nodes of one right-hand side and of what is computed with it; equal nodes are one."""

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

    def input(self, pointer: int, slot: int) -> int:
        """The node of what stands in `slot` behind `pointer` when the function is called."""
        return self.add(Node("input", (pointer, slot)))

    def value(self, index: int) -> float | None:
        """The number of a constant node, None for any other."""
        return self.nodes[index].value

    def is_zero(self, index: int) -> bool:
        """Whether a node is the constant 0."""
        return self.nodes[index].value == 0.0

    def do(self, operation: str, *arguments: int) -> int:
        """The node of an operation, simplified where an argument is a neutral constant."""
        short = self._shorter(operation, arguments)
        return self.add(Node(operation, arguments)) if short is None else short

    def sum(self, terms: Iterable[int]) -> int:
        """The node of a sum; of nothing, 0."""
        total = self.constant(0.0)
        for term in terms:
            total = self.do("add", total, term)
        return total

    def ancestors(self, outputs: Iterable[int]) -> list[int]:
        """What `outputs` need, themselves included, in an order in which to compute."""
        needed: set[int] = set()
        stack = list(outputs)
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                if self.nodes[k].operation != "input":
                    stack.extend(self.nodes[k].arguments)
        return sorted(needed)

    def copied(self, outputs: Sequence[int], source: Graph, inputs: Mapping[int, int]) -> list[int]:
        """`outputs` of another graph written here, its input nodes replaced by the nodes `inputs`."""
        here = dict(inputs)
        for k in source.ancestors(outputs):
            if k not in here:
                node = source.nodes[k]
                if node.value is not None:
                    here[k] = self.constant(node.value)
                else:
                    here[k] = self.do(node.operation, *(here[a] for a in node.arguments))
        return [here[k] for k in outputs]

    def jacobian(self, outputs: Sequence[int], inputs: Sequence[int]) -> list[list[int]]:
        """Nodes of d output / d input, (output, input)."""
        order = self.ancestors(outputs)
        columns = [self._derivatives(order, outputs, index) for index in inputs]
        return [[column[k] for column in columns] for k in range(len(outputs))]

    def _derivatives(self, order: Sequence[int], outputs: Sequence[int], by: int) -> list[int]:
        zero, known = self.constant(0.0), {by: self.constant(1.0)}
        for k in order:
            node = self.nodes[k]
            if k == by:
                continue
            if node.operation in ("constant", "input") or node.operation in CONDITIONS:
                known[k] = zero
            else:
                known[k] = self._chain(node, k, known)
        return [known.get(k, zero) for k in outputs]

    def _shorter(self, operation: str, arguments: tuple[int, ...]) -> int | None:
        known = [self.value(a) for a in arguments]
        if all(v is not None for v in known):
            return self._folded(operation, known)
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

    def _folded(self, operation: str, known: Sequence[float | None]) -> int | None:
        if operation not in _FOLD:
            return None
        try:
            return self.constant(float(_FOLD[operation](*known)))
        except (ArithmeticError, ValueError):
            return None  # left to the compiled function, which answers infinity or NaN as torch does

    def _chain(self, node: Node, k: int, known: Mapping[int, int]) -> int:
        do, a = self.do, node.arguments
        slopes = [known[i] for i in a]
        zero = self.constant(0.0)
        if all(s == zero for s in slopes):
            return zero
        if node.operation == "where":
            return do("where", a[0], slopes[1], slopes[2])
        if node.operation in ("maximum", "minimum"):
            first = do("ge" if node.operation == "maximum" else "le", a[0], a[1])
            return do("where", first, slopes[0], slopes[1])
        return self.sum(
            do("mul", slope, self._partial(node, k, place))
            for place, slope in enumerate(slopes)
            if slope != zero
        )

    def _partial(self, node: Node, k: int, place: int) -> int:
        """The node of the derivative of operation `node`, whose value is node k, by its argument `place`."""
        do, one, zero, x = self.do, self.constant(1.0), self.constant(0.0), node.arguments[0]
        other, minus = node.arguments[-1], self.constant(-1.0)
        if node.operation == "pow":
            if place == 0:
                return do("mul", other, do("pow", x, do("sub", other, one)))
            return do("where", do("eq", x, zero), zero, do("mul", k, do("log", x)))
        if node.operation == "div":
            return do("div", one, other) if place == 0 else do("neg", do("div", k, other))

        def square(i: int) -> int:
            return do("mul", i, i)

        def sign() -> int:
            below = do("where", do("lt", x, zero), minus, zero)
            return do("where", do("gt", x, zero), one, below)

        rules: dict[str, Callable[[], int]] = {
            "add": lambda: one,
            "sub": lambda: one if place == 0 else minus,
            "mul": lambda: other if place == 0 else x,
            "neg": lambda: minus,
            "abs": sign,
            "floor": lambda: zero,
            "exp": lambda: k,
            "sigmoid": lambda: do("mul", k, do("sub", one, k)),
            "expm1": lambda: do("add", k, one),
            "log": lambda: do("div", one, x),
            "log1p": lambda: do("div", one, do("add", one, x)),
            "sqrt": lambda: do("div", self.constant(0.5), k),
            "sin": lambda: do("cos", x),
            "cos": lambda: do("neg", do("sin", x)),
            "tan": lambda: do("add", one, square(k)),
            "asin": lambda: do("div", one, do("sqrt", do("sub", one, square(x)))),
            "acos": lambda: do("div", minus, do("sqrt", do("sub", one, square(x)))),
            "atan": lambda: do("div", one, do("add", one, square(x))),
            "sinh": lambda: do("cosh", x),
            "cosh": lambda: do("sinh", x),
            "tanh": lambda: do("sub", one, square(k)),
            "erf": lambda: do("mul", self.constant(2.0 / math.sqrt(math.pi)), do("exp", do("neg", square(x)))),
        }
        return rules[node.operation]()
