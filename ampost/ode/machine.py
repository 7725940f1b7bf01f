"""Graphs of scalar operations -> machine code that computes them for eight rows at once.

A compiled function takes three addresses. Behind each stand slots of eight doubles, one for each row
(lane) that is worked on; an input node is a slot behind one of the addresses, an output is written to
one. The code is a straight line: no loop, no branch, no call but to the C library's functions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from ampost.ode.graph import CONDITIONS, FUNCTIONS, LANES, Graph

Place = tuple[int, int]  # which address, which slot behind it

_V, _B = f"<{LANES} x double>", f"<{LANES} x i1>"
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARED = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor"}


class Code:
    """Compiled functions and their addresses; they live as long as this object."""

    def __init__(self, graph: Graph, functions: Mapping[str, Mapping[Place, int]]) -> None:
        machine = _machine()
        text = [_function(graph, name, outputs) for name, outputs in functions.items()]
        module = llvm.parse_assembly("\n".join([f'target triple = "{machine.triple}"', *text, _library()]))
        module.data_layout = str(machine.target_data)
        # machine code is emitted once per target machine: each engine takes its own
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, _machine())
        self._engine.finalize_object()
        self.addresses = {name: self._engine.get_function_address(name) for name in functions}


def _machine() -> Any:
    """The processor at hand, optimised for."""
    _initialise()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1, jit=True
    )


@cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _number(value: float) -> str:
    return f"splat (double 0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X})"


def _function(graph: Graph, name: str, outputs: Mapping[Place, int]) -> str:
    """The text of one function; a graph's conditions are bits and become 1.0 or 0.0 in arithmetic."""
    lines: list[str] = []

    def real(k: int) -> str:
        node = graph.nodes[k]
        if node.value is not None:
            return _number(node.value)
        if node.operation in CONDITIONS:
            lines.append(f"  %r{k}.{len(lines)} = uitofp {_B} %v{k} to {_V}")
            return f"%r{k}.{len(lines) - 1}"
        return f"%v{k}"

    def bit(k: int) -> str:
        if graph.nodes[k].operation in CONDITIONS:
            return f"%v{k}"
        lines.append(f"  %b{k}.{len(lines)} = fcmp une {_V} {real(k)}, zeroinitializer")
        return f"%b{k}.{len(lines) - 1}"

    for k in graph.ancestors(outputs.values()):
        node = graph.nodes[k]
        operation, a = node.operation, node.arguments
        if operation == "constant":
            continue
        if operation == "input":
            lines.append(f"  %q{k} = getelementptr {_V}, ptr %p{a[0]}, i64 {a[1]}")
            text = f"load {_V}, ptr %q{k}, align 8"
        elif operation in _ARITHMETIC:
            text = f"{_ARITHMETIC[operation]} contract {_V} {real(a[0])}, {real(a[1])}"
        elif operation == "neg":
            text = f"fneg {_V} {real(a[0])}"
        elif operation in _INTRINSIC:
            text = f"call {_V} @llvm.{_INTRINSIC[operation]}.v{LANES}f64({_V} {real(a[0])})"
        elif operation in _COMPARED:
            text = f"fcmp {_COMPARED[operation]} {_V} {real(a[0])}, {real(a[1])}"
        elif operation in ("and", "or"):
            text = f"{operation} {_B} {bit(a[0])}, {bit(a[1])}"
        elif operation == "not":
            text = f"xor {_B} {bit(a[0])}, splat (i1 true)"
        elif operation == "where":
            text = f"select {_B} {bit(a[0])}, {_V} {real(a[1])}, {_V} {real(a[2])}"
        elif operation in ("maximum", "minimum"):  # NaN where either is
            one, two = real(a[0]), real(a[1])
            lines.append(f"  %n{k} = fcmp uno {_V} {one}, zeroinitializer")
            lines.append(f"  %m{k} = fcmp {'oge' if operation == 'maximum' else 'ole'} {_V} {one}, {two}")
            lines.append(f"  %o{k} = or {_B} %n{k}, %m{k}")
            text = f"select {_B} %o{k}, {_V} {one}, {_V} {two}"
        else:
            text = f"call {_V} @rows_{operation}({', '.join(f'{_V} {real(i)}' for i in a)})"
        lines.append(f"  %v{k} = {text}")
    for number, ((pointer, slot), k) in enumerate(outputs.items()):
        value = real(k)
        lines.append(f"  %w{number} = getelementptr {_V}, ptr %p{pointer}, i64 {slot}")
        lines.append(f"  store {_V} {value}, ptr %w{number}, align 8")
    head = f"define void @{name}(ptr %p0, ptr %p1, ptr %p2) {{"
    return "\n".join([head, *lines, "  ret void", "}"])


@cache
def _library() -> str:
    """The C library's functions on eight rows, and a power that is good to some percent."""
    text = [f"declare {_V} @llvm.{name}.v{LANES}f64({_V})" for name in _INTRINSIC.values()]
    for name in FUNCTIONS:
        inputs = ("x", "y") if name == "pow" else ("x",)
        text.append(f"declare double @{name}({', '.join('double' for _ in inputs)})")
        text.append(f"define internal {_V} @rows_{name}({', '.join(f'{_V} %{i}' for i in inputs)}) {{")
        last = "poison"
        for lane in range(LANES):
            text += [f"  %{i}{lane} = extractelement {_V} %{i}, i32 {lane}" for i in inputs]
            given = ", ".join(f"double %{i}{lane}" for i in inputs)
            text.append(f"  %r{lane} = call double @{name}({given})")
            text.append(f"  %o{lane} = insertelement {_V} {last}, double %r{lane}, i32 {lane}")
            last = f"%o{lane}"
        text += [f"  ret {_V} {last}", "}"]
    one = _number(1.0)
    text += [  # its derivative is made of its value, and so finite everywhere
        f"define internal {_V} @rows_sigmoid({_V} %x) {{",
        f"  %n = fneg {_V} %x",
        f"  %e = call {_V} @rows_exp({_V} %n)",
        f"  %s = fadd {_V} %e, {one}",
        f"  %r = fdiv {_V} {one}, %s",
        f"  ret {_V} %r",
        "}",
    ]
    # the bits of a double, as a whole number, are near to its logarithm
    integers, bias = f"<{LANES} x i64>", _number(float(0x3FEF_0000_0000_0000))
    text += [
        f"define internal {_V} @rows_rough_pow({_V} %x, {_V} %a) {{",
        f"  %i = bitcast {_V} %x to {integers}",
        f"  %f = sitofp {integers} %i to {_V}",
        f"  %d = fsub {_V} %f, {bias}",
        f"  %m = fmul {_V} %d, %a",
        f"  %s = fadd {_V} %m, {bias}",
        f"  %j = fptosi {_V} %s to {integers}",
        f"  %r = bitcast {integers} %j to {_V}",
        f"  ret {_V} %r",
        "}",
    ]
    return "\n".join(text)
