"""The potential of a model, -log joint in z, without running its Pyro program in each call.

The program runs once while torch records what is done to the tensors, gradient included; the ODE is one
operation of that record. What does not depend on z is computed then and there. MCMC, which asks for one
point at a time, saves most of its time so.
"""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from ampost.experiments import Experiments
from ampost.model import Model
from ampost.ode.recorded import jobs

BEYOND = 1e300  # where the joint density is not finite: above that of any likelihood far from the data
Both = Callable[[Tensor], tuple[Tensor, Tensor]]


class Potential:
    """-log joint of one data set at z (z,), a scalar that gradients flow through.

    `recorded` is false, after a warning with the reason, where the program cannot be recorded, since it
    branches on values in Python; each call then runs it.
    """

    def __init__(self, model: Model, data: Experiments) -> None:
        direct = _direct(model, data)
        before = set(jobs)
        try:
            self._both, self.recorded = _recorded(direct, model.z_size(data.count)), True
        except (RuntimeError, _DifferentError) as reason:
            warnings.warn(
                f"the program {model.name!r} cannot be recorded and is run in each call, which is slower: "
                f"{str(reason).splitlines()[0]}",
                stacklevel=2,
            )
            self._both, self.recorded = direct, False
        weakref.finalize(self, _let_go, set(jobs) - before)

    def __call__(self, z: Tensor) -> Tensor:
        """The potential at z."""
        return _Known.apply(z, self._both)  # type: ignore[no-any-return, no-untyped-call]


class _DifferentError(Exception):
    """The record gives other numbers than the program."""


class _Known(torch.autograd.Function):
    """A value whose gradient came along with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, both: Both) -> Tensor:  # noqa: ANN401
        value, gradient = both(z.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None


def _direct(model: Model, data: Experiments) -> Both:
    """Potential and gradient by running the program."""

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = -model.log_joint(z[None, None], data)[0, 0]
            value = torch.where(torch.isfinite(value), value, BEYOND)
            (gradient,) = torch.autograd.grad(value, z)
        return value.detach(), torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    return both


def _recorded(direct: Both, size: int) -> Both:
    """`direct` as a record of operations, compared with it at random points."""
    generator = torch.Generator().manual_seed(0)
    # far points, where solutions may fail, before near ones: nothing may be left behind by a call
    scales = torch.tensor([0.5, 100.0, 0.5, 5.0, 0.5, 0.5], dtype=torch.float64)[:, None]
    points = scales * torch.randn(len(scales), size, generator=generator, dtype=torch.float64)
    direct(points[0])  # compile what is to be compiled
    graph = make_fx(direct)(points[0])
    with torch.no_grad():
        _fold(graph)
    merged = CSEPass()(graph)
    graph = graph if merged is None else merged.graph_module
    _shorten(graph)

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            value, gradient = graph(z)
        return value.clone(), gradient.clone()

    for point in points:
        for mine, theirs in zip(both(point), direct(point), strict=True):
            if not torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12):
                raise _DifferentError("its operations depend on values")
    return both


def _fold(graph: GraphModule) -> None:
    """Compute what neither depends on the input nor is written to in place, once and for all."""
    depends: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if node in depends or getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            depends.update((node, *node.all_input_nodes))
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(a in depends for a in node.all_input_nodes):
            depends.add(node)
    known: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node in depends or node.op == "output":
            continue
        if node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
            continue
        given = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
        known[node] = node.target(*given[0], **given[1])
        if any(user in depends for user in node.users):
            name = f"_known{len(known)}"
            graph.register_buffer(name, known[node])
            with graph.graph.inserting_before(node):
                kept = graph.graph.get_attr(name)
            known[kept] = known[node]
            node.replace_all_uses_with(kept)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _shorten(graph: GraphModule) -> None:
    """Leave out what changes nothing, and let changes of shape follow each other in one operation."""
    aten = torch.ops.aten
    shaping = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim}
    unchanging = {*shaping, aten.expand.default, aten.mul.Tensor, aten.pow.Tensor_Scalar}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            continue
        source, shape, before = node.args[0], _shape(node), _shape(node.args[0])
        same = shape is not None and shape == before
        by_one = node.target in (aten.mul.Tensor, aten.pow.Tensor_Scalar) and node.args[1] != 1.0
        if node.target is aten.detach.default or (node.target in unchanging and same and not by_one):
            node.replace_all_uses_with(source)
        elif node.target in shaping and source.target in shaping and shape is not None:
            node.target, node.args, node.kwargs = aten.reshape.default, (source.args[0], list(shape)), {}
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _shape(node: Node) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def _let_go(mine: set[int]) -> None:
    for job in mine:
        jobs.pop(job, None)
