"""The engines that are compared, each behind `solve(case, parameters, start, rtol, atol)`.

Building, compiling and warming up happen in the first call for a case, a tolerance and a number of rows;
`Peer.warm` makes that call. Each peer runs in its strongest form on one core that its package offers
without writing C. What a peer cannot solve it answers by None; rows that fail are NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from problems import Array, Case, Segment, segments

EXPLICIT_STEPS = 10_000  # per segment; explicit methods give up rows whose oxygen runs out
IMPLICIT_STEPS = 100_000

Advance = Callable[[Segment, Array, Array], Array]  # segment, y (row, state), p (row, parameter)
Gradient = Callable[[Array, Array], Array]  # y (row, state), p -> (row, parameter)


class Peer:
    """One engine. `whole` engines take all rows at once, so their cost does not scale from fewer rows."""

    name = ""
    package = ""
    module = ""
    whole = False
    stiff = False
    note = ""

    def __init__(self) -> None:
        self._advances: dict[Any, Advance] = {}
        self._gradients: dict[Any, Gradient] = {}

    def available(self) -> bool:
        """Whether the package can be imported."""
        if find_spec(self.module) is None:
            return False
        try:
            import_module(self.module)
        except (ImportError, OSError) as error:
            warnings.warn(f"{self.name}: {error}", stacklevel=2)
            return False
        return True

    def version(self) -> str:
        """The installed version."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "?"

    def solves(self, case: Case) -> bool:
        """Whether it is worth asking: explicit methods are not asked where they would crawl."""
        return self.stiff or case.explicit

    def warm(self, case: Case, parameters: Array, start: Array, rtol: float, atol: float) -> Array | None:
        """Build and compile by one untimed solve of the same shape."""
        return self.solve(case, parameters, start, rtol, atol)

    def solve(self, case: Case, parameters: Array, start: Array, rtol: float, atol: float) -> Array | None:
        """States (row, time, state) at the case's times; None where the peer cannot."""
        if not self.solves(case):
            return None
        key = (case.name, rtol, atol)
        if key not in self._advances:
            self._advances[key] = self.build(case, rtol, atol)
        advance = self._advances[key]
        out = np.empty((len(start), len(case.times), len(case.states)))
        out[:, 0] = y = start
        look, failed = 1, np.zeros(len(start), dtype=bool)
        for segment in segments(case):
            states = advance(segment, y, parameters)
            failed |= ~np.isfinite(states).all((1, 2))
            out[:, look : look + segment.looks] = states[:, : segment.looks]
            out[failed, look:] = np.nan
            look += segment.looks
            y = np.where(failed[:, None], start, states[:, -1])  # a start from NaN would use up all steps
            if segment.amount is not None:
                assert case.pulses is not None
                y = np.stack(case.pulses.jump(y.T, segment.amount), -1)
        return out

    def gradient(self, case: Case, parameters: Array, start: Array, rtol: float, atol: float) -> Array | None:
        """Derivatives (row, parameter) of the sum over times of `case.weights` times the states.

        None where the peer cannot.
        """
        if case.pulses is not None or not self.solves(case):
            return None
        key = (case.name, rtol, atol)
        if key not in self._gradients:
            built = self.build_gradient(case, rtol, atol)
            if built is None:
                return None
            self._gradients[key] = built
        return self._gradients[key](start, parameters)

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """The solver of one segment."""
        raise NotImplementedError

    def build_gradient(self, case: Case, rtol: float, atol: float) -> Gradient | None:
        """The gradient, where the package has one."""
        return None


def _compiled_into(case: Case) -> Any:
    """`f(t, y, out, p)` by numba."""
    from numba import njit

    inner, size = njit(case.rhs, error_model="numpy"), len(case.states)

    @njit(error_model="numpy")
    def into(t, y, out, p):  # noqa: ANN202
        slopes = inner(t, y, p)
        for i in range(size):
            out[i] = slopes[i]

    return into


# --------------------------------------------------------------------------------------- ampost


class Ampost(Peer):
    """This package, with its own choice of method or held to one."""

    package, module = "ampost", "ampost"
    whole = stiff = True

    def __init__(self, method: str | None = None) -> None:
        super().__init__()
        self.method, self.name = method, "ampost" if method is None else f"ampost {method}"

    def solve(self, case: Case, parameters: Array, start: Array, rtol: float, atol: float) -> Array | None:
        """One `odeint` for all rows."""
        import torch

        with torch.no_grad():
            solved = self._odeint(case, parameters, start, rtol, atol)
        return None if solved is None else solved.states[:, 0].numpy()

    def gradient(self, case: Case, parameters: Array, start: Array, rtol: float, atol: float) -> Array | None:
        """By torch's backward pass; pulses too."""
        import torch

        leaves = torch.as_tensor(parameters).clone().requires_grad_()
        solved = self._odeint(case, leaves, start, rtol, atol)
        if solved is None:
            return None
        total = (solved.states * torch.as_tensor(case.weights)).sum()
        return torch.autograd.grad(total, leaves)[0].numpy()

    def _odeint(self, case: Case, parameters: Any, start: Array, rtol: float, atol: float) -> Any:
        import torch

        from ampost import Compiled, Experiments, answering, odeint

        wide, begin = torch.as_tensor(parameters), torch.as_tensor(start)
        initial = {k: begin[:, i, None, None] for i, k in enumerate(case.states)}
        given = {k: wide[:, i, None, None] for i, k in enumerate(case.parameters)}
        solver = Compiled(rtol=rtol, atol=atol)
        if self.method is not None:
            solver = replace(solver, methods=(getattr(import_module("ampost.ode.methods"), self.method),))
        with answering(solver):
            if case.pulses is not None:
                return ampost_pulses(case, initial, given)
            looks = Experiments.on(torch.as_tensor(case.times)[None], [case.states[0]])
            return odeint(case.rhs_named, initial, given, looks)


def ampost_pulses(case: Case, initial: dict[str, Any], given: dict[str, Any]) -> Any:
    """The case with its pulses as events: `jump(y, p, amount)` returns the new states.

    Needs an engine with `events=`. None where `odeint` refuses them.
    """
    import torch

    from ampost import Doses, Experiments, odeint
    from ampost.errors import OdeError, UnsupportedError

    pulses = case.pulses
    assert pulses is not None
    time = torch.as_tensor(pulses.times)[None]
    doses = Doses(
        time=time,
        amount=torch.as_tensor(pulses.amounts)[None],
        duration=torch.zeros_like(time),
        target=torch.zeros_like(time, dtype=torch.long),
        mask=torch.ones_like(time, dtype=torch.bool),
        targets=("pulse",),
    )
    looks = Experiments.on(torch.as_tensor(case.times)[None], [case.states[0]], doses=doses)
    try:
        return odeint(case.rhs_named, initial, given, looks, events={"pulse": pulses.jump_named})
    except (UnsupportedError, OdeError) as error:
        warnings.warn(f"ampost, {case.name}: {error}", stacklevel=2)
        return None


# ---------------------------------------------------------------------------------------- scipy


class Scipy(Peer):
    """`solve_ivp` with LSODA, row by row; the right-hand side is Python."""

    name, package, module = "scipy LSODA", "scipy", "scipy.integrate"
    stiff = True
    note = "right-hand side in Python"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Nothing to compile."""
        from scipy.integrate import solve_ivp

        def slopes(t: float, y: Array, p: list[float]) -> list[float]:
            return case.rhs_python(t, y.tolist(), p)

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            out = np.full((len(y), len(segment.grid), len(case.states)), np.nan)
            span = (segment.begin, segment.grid[-1])
            for r in range(len(y)):
                row = solve_ivp(
                    slopes,
                    span,
                    y[r],
                    "LSODA",
                    t_eval=segment.grid,
                    args=(p[r].tolist(),),
                    rtol=rtol,
                    atol=atol,
                )
                if row.success:
                    out[r] = row.y.T
            return out

        return advance


# --------------------------------------------------------------------------------------- CVODE


class Sundae(Peer):
    """SUNDIALS' CVODE by scikit-sundae, row by row; numba compiles the right-hand side, Python calls it."""

    name, package, module = "scikit-sundae CVODE", "scikit-sundae", "sksundae"
    stiff = True
    note = "right-hand side by numba, called from Python; BDF where stiff, else Adams"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Compile the right-hand side, which reads the parameters of the row at hand."""
        from sksundae.cvode import CVODE

        into, data = _compiled_into(case), np.empty(len(case.parameters))

        def slopes(t: float, y: Array, out: Array) -> None:
            into(t, y, out, data)

        solver = CVODE(
            slopes,
            method="BDF" if case.stiff else "Adams",
            rtol=rtol,
            atol=atol,
            max_num_steps=IMPLICIT_STEPS,
        )

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            count = len(segment.grid)
            out = np.full((len(y), count, len(case.states)), np.nan)
            span = np.concatenate([[segment.begin], segment.grid])
            for r in range(len(y)):
                data[:] = p[r]
                row = solver.solve(span, y[r])
                if row.success:
                    out[r] = row.y[-count:]
            return out

        return advance


# --------------------------------------------------------------------------------------- heyoka


def _heyoka_system(case: Case) -> tuple[list[Any], list[Any]]:
    import heyoka as hy

    states = list(hy.make_vars(*case.states))
    slopes = case.rhs(hy.time, states, [hy.par[i] for i in range(len(case.parameters))])
    return states, [(s, hy.expression(0.0) + slope) for s, slope in zip(states, slopes, strict=True)]


class Heyoka(Peer):
    """Taylor series by heyoka, row by row. Its one tolerance is the relative one."""

    name, package, module = "heyoka scalar", "heyoka", "heyoka"
    note = "Taylor; one tolerance"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Compile the system once; parameters are runtime values."""
        import heyoka as hy

        size, width = len(case.states), len(case.parameters)
        solver = hy.taylor_adaptive(_heyoka_system(case)[1], [1.0] * size, pars=[1.0] * width, tol=rtol)

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            out = np.full((len(y), len(segment.grid), size), np.nan)
            grid = np.concatenate([[segment.begin], segment.grid])
            for r in range(len(y)):
                solver.time = segment.begin
                solver.state[:] = y[r]
                solver.pars[:] = p[r]
                states = solver.propagate_grid(grid, max_steps=EXPLICIT_STEPS)[-1]
                out[r, : len(states) - 1] = states[1:]
            return out

        return advance

    def build_gradient(self, case: Case, rtol: float, atol: float) -> Gradient:
        """Variational equations for all parameters."""
        import heyoka as hy

        size, width = len(case.states), len(case.parameters)
        system = hy.var_ode_sys(_heyoka_system(case)[1], hy.var_args.params, order=1)
        solver = hy.taylor_adaptive(system, [1.0] * size, pars=[1.0] * width, tol=rtol)
        grid = np.array(case.times)

        def gradient(y: Array, p: Array) -> Array:
            out = np.full((len(y), width), np.nan)
            for r in range(len(y)):
                solver.time = grid[0]
                solver.state[:size], solver.state[size:] = y[r], 0.0
                solver.pars[:] = p[r]
                states = solver.propagate_grid(grid, max_steps=EXPLICIT_STEPS)[-1]
                if len(states) == len(grid):
                    out[r] = case.weights @ states[:, size:].sum(0).reshape(size, width)
            return out

        return gradient


class HeyokaBatch(Peer):
    """heyoka's batch mode: as many rows at once as a vector register of the machine holds."""

    name, package, module = "heyoka batch", "heyoka", "heyoka"
    note = "Taylor; one tolerance; rows in lanes of a vector register"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Compile the system once; the last lanes repeat a row where the number of rows is no multiple."""
        import heyoka as hy

        size = len(case.states)
        lanes, solver = _heyoka_lanes(case, _heyoka_system(case)[1], rtol)

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            out = np.empty((len(y), len(segment.grid), size))
            column = np.concatenate([[segment.begin], segment.grid])
            grid = np.repeat(column[:, None], lanes, 1)
            for first in range(0, len(y), lanes):
                pick = np.minimum(np.arange(first, first + lanes), len(y) - 1)
                solver.set_time(segment.begin)
                solver.state[:] = y[pick].T
                solver.pars[:] = p[pick].T
                states = solver.propagate_grid(grid, max_steps=EXPLICIT_STEPS)[1]
                ended = np.array([r[0] == hy.taylor_outcome.time_limit for r in solver.propagate_res])
                rows = min(lanes, len(y) - first)
                out[first : first + rows] = np.where(ended, states[1:], np.nan).transpose(2, 0, 1)[:rows]
            return out

        return advance

    def build_gradient(self, case: Case, rtol: float, atol: float) -> Gradient:
        """Variational equations for all parameters."""
        import heyoka as hy

        size, width = len(case.states), len(case.parameters)
        system = hy.var_ode_sys(_heyoka_system(case)[1], hy.var_args.params, order=1)
        lanes, solver = _heyoka_lanes(case, system, rtol)
        grid = np.repeat(np.array(case.times)[:, None], lanes, 1)

        def gradient(y: Array, p: Array) -> Array:
            out = np.empty((len(y), width))
            for first in range(0, len(y), lanes):
                pick = np.minimum(np.arange(first, first + lanes), len(y) - 1)
                solver.set_time(grid[0, 0])
                solver.state[:size], solver.state[size:] = y[pick].T, 0.0
                solver.pars[:] = p[pick].T
                states = solver.propagate_grid(grid, max_steps=EXPLICIT_STEPS)[1]
                rows = min(lanes, len(y) - first)
                total = np.tensordot(case.weights, states[:, size:].sum(0).reshape(size, width, lanes), 1)
                out[first : first + rows] = total.T[:rows]
            return out

        return gradient


def _heyoka_lanes(case: Case, system: Any, rtol: float) -> tuple[int, Any]:
    import heyoka as hy

    lanes = hy.recommended_simd_size()
    start, pars = np.ones((len(case.states), lanes)), np.ones((len(case.parameters), lanes))
    return lanes, hy.taylor_adaptive_batch(system, start, pars=pars, tol=rtol)


# ----------------------------------------------------------------------------------------- CyRK


class CyRK(Peer):
    """CyRK's C++ solvers, called from a numba loop over rows; the right-hand side is numba's too."""

    package, module = "CyRK", "CyRK"
    note = "loop and right-hand side by numba"

    def __init__(self, method: str, stiff: bool = False) -> None:
        super().__init__()
        self.method, self.stiff, self.name = method, stiff, f"CyRK {method}"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Compile the right-hand side and the loop."""
        from CyRK import nb_diffeq_addr, nbsolve2_ivp
        from numba import njit

        into, method = _compiled_into(case), self.method
        most = IMPLICIT_STEPS if self.stiff else EXPLICIT_STEPS

        def ordered(out, t, y, p):  # noqa: ANN202
            into(t, y, out, p)

        address = nb_diffeq_addr(ordered)

        @njit
        def loop(address, begin, grid, y, p, rtol, atol, out):  # noqa: ANN202
            for r in range(len(y)):
                row = nbsolve2_ivp(
                    address,
                    (begin, grid[-1]),
                    y[r],
                    method=method,
                    t_eval=grid,
                    args=p[r],
                    rtol=rtol,
                    atol=atol,
                    max_num_steps=most,
                )
                if row.success and row.y.shape[1] == len(grid):
                    states = row.y
                    for k in range(len(grid)):
                        for i in range(out.shape[2]):
                            out[r, k, i] = states[i, k]
                else:
                    out[r] = np.nan
                row.free()

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            out = np.empty((len(y), len(segment.grid), len(case.states)))
            start, parameters = np.ascontiguousarray(y), np.ascontiguousarray(p)
            loop(address, segment.begin, segment.grid, start, parameters, rtol, atol, out)
            return out

        return advance


# --------------------------------------------------------------------------------------- CasADi


class Casadi(Peer):
    """CasADi's CVODES, row by row; gradients by its forward sensitivities."""

    name, package, module = "CasADi CVODES", "casadi", "casadi"
    stiff = True
    note = "right-hand side on CasADi's virtual machine; BDF where stiff, else Adams"

    def _integrator(self, case: Case, grid: Array, rtol: float, atol: float) -> Any:
        import casadi as ca

        y, p = ca.SX.sym("y", len(case.states)), ca.SX.sym("p", len(case.parameters))
        slopes = case.rhs(0.0, [y[i] for i in range(y.numel())], [p[i] for i in range(p.numel())])
        options = {"reltol": rtol, "abstol": atol, "max_num_steps": IMPLICIT_STEPS}
        if not case.stiff:
            options |= {"linear_multistep_method": "adams", "nonlinear_solver_iteration": "functional"}
        system = {"x": y, "p": p, "ode": ca.vertcat(*slopes)}
        return ca.integrator("solve", "cvodes", system, 0.0, grid.tolist(), options)

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """One integrator per grid counted from the begin of its segment; time itself does not matter."""
        known: dict[tuple[float, ...], Any] = {}

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            key = tuple(np.round(segment.grid - segment.begin, 12))
            if key not in known:
                known[key] = self._integrator(case, np.array(key), rtol, atol)
            solve = known[key]
            out = np.full((len(y), len(key), len(case.states)), np.nan)
            for r in range(len(y)):
                try:
                    out[r] = solve(x0=y[r], p=p[r])["xf"].full().T
                except RuntimeError:
                    continue
            return out

        return advance

    def build_gradient(self, case: Case, rtol: float, atol: float) -> Gradient:
        """One forward sensitivity per parameter, all in one integration."""
        import casadi as ca

        looks, width = len(case.times) - 1, len(case.parameters)
        plain = self._integrator(case, case.times[1:] - case.times[0], rtol, atol)
        several = plain.forward(width)
        inputs, outputs = plain.name_in(), plain.name_out()
        empty = {
            **{f"out_{k}": ca.DM.zeros(*plain.size_out(k)) for k in outputs},
            **{f"fwd_{k}": ca.DM.zeros(plain.size1_in(k), plain.size2_in(k) * width) for k in inputs},
        }
        empty["fwd_p"] = ca.DM.eye(width)

        def gradient(y: Array, p: Array) -> Array:
            out = np.full((len(y), width), np.nan)
            for r in range(len(y)):
                given = {"x0": y[r], "p": p[r]}
                nominal = plain(**given)
                states = several(**{**empty, **given, **{f"out_{k}": nominal[k] for k in outputs}})
                out[r] = (case.weights @ states["fwd_xf"].full()).reshape(width, looks).sum(1)
            return out

        return gradient


# -------------------------------------------------------------------------------------- diffrax


class Diffrax(Peer):
    """diffrax, all rows in one vmap, compiled by XLA in double precision."""

    package, module = "diffrax", "diffrax"
    whole = True
    note = "vmap and jit; the slowest row sets the number of steps"

    def __init__(self, method: str, stiff: bool = False) -> None:
        super().__init__()
        self.method, self.stiff, self.name = method, stiff, f"diffrax {method}"

    def available(self) -> bool:
        """Also asks JAX for double precision on the CPU."""
        if not super().available():
            return False
        import jax

        jax.config.update("jax_enable_x64", True)
        return True

    def solves(self, case: Case) -> bool:
        """The implicit method only where it is needed."""
        return case.stiff if self.stiff else case.explicit

    def _row(self, case: Case, rtol: float, atol: float) -> Any:
        import diffrax
        import jax.numpy as jnp

        term = diffrax.ODETerm(lambda t, y, p: jnp.stack(case.rhs(t, y, p)))
        method = getattr(diffrax, self.method)()
        steps = diffrax.PIDController(rtol=rtol, atol=atol)

        def row(begin: Any, grid: Any, y: Any, p: Any, adjoint: Any = None) -> Any:
            more = {} if adjoint is None else {"adjoint": adjoint}
            solved = diffrax.diffeqsolve(
                term,
                method,
                begin,
                grid[-1],
                None,
                y,
                p,
                saveat=diffrax.SaveAt(ts=grid),
                stepsize_controller=steps,
                max_steps=IMPLICIT_STEPS if self.stiff else EXPLICIT_STEPS,
                throw=False,
                **more,
            )
            return jnp.where(solved.result == diffrax.RESULTS.successful, solved.ys, jnp.nan)

        return row

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """XLA compiles once for each number of rows and length of grid."""
        import jax

        solve = jax.jit(jax.vmap(self._row(case, rtol, atol), in_axes=(None, None, 0, 0)))

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            return np.asarray(solve(segment.begin, segment.grid, y, p))

        return advance

    def build_gradient(self, case: Case, rtol: float, atol: float) -> Gradient:
        """Forward mode: one tangent per parameter through the solver's steps."""
        import diffrax
        import jax

        row, begin, grid = self._row(case, rtol, atol), float(case.times[0]), np.array(case.times[1:])

        def total(y: Any, p: Any) -> Any:
            return (row(begin, grid, y, p, diffrax.ForwardMode()) * case.weights).sum()

        solve = jax.jit(jax.vmap(jax.jacfwd(total, argnums=1)))
        return lambda y, p: np.asarray(solve(y, p))


# ------------------------------------------------------------------------------------- torchode


class Torchode(Peer):
    """torchode's Tsit5, all rows in one batch with a step size each, in torch's eager mode."""

    name, package, module = "torchode Tsit5", "torchode", "torchode"
    whole = True
    note = "torch operations, one by one"

    def build(self, case: Case, rtol: float, atol: float) -> Advance:
        """Nothing to compile: scripting asks for an annotated right-hand side of this case alone."""
        import torch
        import torchode as to

        def slopes(t: Any, y: Any, p: Any) -> Any:
            return torch.stack(list(case.rhs(t, y.unbind(-1), p.unbind(-1))), -1)

        term = to.ODETerm(slopes, with_args=True)
        control = to.IntegralController(atol=atol, rtol=rtol, term=term)
        solver = to.AutoDiffAdjoint(to.Tsit5(term=term), control, max_steps=EXPLICIT_STEPS)

        def advance(segment: Segment, y: Array, p: Array) -> Array:
            column = np.concatenate([[segment.begin], segment.grid])
            grid = torch.as_tensor(np.tile(column, (len(y), 1)))
            problem = to.InitialValueProblem(y0=torch.as_tensor(np.ascontiguousarray(y)), t_eval=grid)
            with torch.no_grad():
                solved = solver.solve(problem, args=torch.as_tensor(p))
            good = (solved.status == 0)[:, None, None]
            return torch.where(good, solved.ys, torch.nan)[:, 1:].numpy()

        return advance


def peers() -> list[Peer]:
    """All engines, ampost first."""
    return [
        Ampost(),
        Scipy(),
        Sundae(),
        Heyoka(),
        HeyokaBatch(),
        CyRK("Tsit5"),
        CyRK("DOP853"),
        CyRK("LSODA", stiff=True),
        Casadi(),
        Diffrax("Tsit5"),
        Diffrax("Kvaerno5", stiff=True),
        Torchode(),
    ]
