"""Two models of the zoo once more, by hand in JAX with diffrax, and NumPyro's NUTS on them.

Coordinates are ampost's, standard normal under the prior; for these log-normal priors NumPyro's own differ by a
shift and a scale. `agrees` compares each log joint with ampost's. Of the ways to solve and to differentiate,
`fastest` takes the one whose gradients are fastest at draws of the posterior.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from samplers import STEP, Sampler
from torch import Tensor

from ampost import Compiled, Experiments, Model
from ampost.errors import ArgumentError
from ampost.seeds import derive
from ampost.zoo.ecoli_fed_batch import (
    CARBON_S,
    CARBON_X,
    DOT_MAX,
    FEED_S,
    FITTED,
    PROBE,
    SATURATION,
    START,
    TRANSFER,
)

try:
    import diffrax
    import jax
    import jax.numpy as jnp
    import optimistix
    from jax.scipy.stats import norm
    from numpyro.infer.hmc import hmc
except ImportError as error:
    raise ImportError(
        f"{error.name} is missing, which the peers of this comparison need: "
        f"pip install -c constraints.txt -r benchmarks/requirements.txt"
    ) from error

jax.config.update("jax_enable_x64", True)

WIDTH = 2 * 1.959963984540054  # of 95 % of a standard normal
RTOL, ATOL = 1e-6, 1e-8  # as ampost's
STEPS = 10_000  # as ampost's
FINE = 1e-9, 1e-11, 1_000_000  # for the comparison of the log joints
AGREE = 1e-6

LogJoint = Callable[[Any], Any]  # z (z,) -> ()
Solve = Callable[[Any], Any]  # parameters (parameter,) -> values


@dataclass(frozen=True)
class Way:
    """A method to solve by, and whether sensitivities go forward with it or gradients backward through it."""

    name: str
    method: Any
    forward: bool
    rtol: float = RTOL
    atol: float = ATOL
    steps: int = STEPS

    def solver(self, solve: Callable[..., Solve]) -> Solve:
        """`solve(adjoint)` as a function of the parameters that reverse mode can differentiate."""
        if not self.forward:
            return solve(diffrax.RecursiveCheckpointAdjoint())
        return forward(solve(diffrax.ForwardMode()))

    def control(self) -> Any:
        """The step size controller."""
        return diffrax.PIDController(rtol=self.rtol, atol=self.atol)


def _newton() -> Any:
    """Newton's method, a new Jacobian in each iteration; diffrax's default rejects half of E. coli's steps."""
    return diffrax.with_stepsize_controller_tols(optimistix.Newton)()


WAYS: Mapping[str, Sequence[Way]] = {
    "michaelis_menten": (
        Way("Tsit5, forward", diffrax.Tsit5(), True),
        Way("Tsit5, backward", diffrax.Tsit5(), False),
        Way("Kvaerno5, forward", diffrax.Kvaerno5(), True),
    ),
    "ecoli_fed_batch": (
        Way("Tsit5, forward", diffrax.Tsit5(), True),
        Way("Tsit5, backward", diffrax.Tsit5(), False),
        Way("Kvaerno5, forward", diffrax.Kvaerno5(root_finder=_newton()), True),
    ),
}


def forward(solve: Solve) -> Solve:
    """`solve` with its sensitivities to all parameters at once, which reverse mode then only multiplies."""

    @jax.custom_vjp
    def known(p: Any) -> Any:
        return solve(p)

    def ahead(p: Any) -> Any:
        return jax.vmap(lambda e: jax.jvp(solve, (p,), (e,)), out_axes=(None, -1))(jnp.eye(len(p)))

    def back(slopes: Any, outer: Any) -> Any:
        return (jnp.tensordot(outer, slopes, outer.ndim),)

    known.defvjp(ahead, back)
    return known


def _between(*limits: tuple[float, float]) -> Callable[[Any], Any]:
    """z (z,) -> parameters with log-normal priors, 95 % between their limits."""
    low, high = np.log(np.array(limits)).T
    middle, sd = jnp.asarray((low + high) / 2), jnp.asarray((high - low) / WIDTH)
    return lambda z: jnp.exp(middle + sd * z)


def michaelis_menten(data: Experiments, way: Way) -> LogJoint:
    """Its log joint in z for one data set; experiments go side by side."""
    channel = data.channels["P"]
    assert channel.values is not None
    times, begin = jnp.asarray(data.times.numpy()), jnp.asarray(data["S0"][:, 0].numpy())
    mask = jnp.asarray(channel.mask.numpy())
    seen = jnp.asarray(torch.where(channel.mask, channel.values, 0.0).numpy())
    parameters = _between((0.05, 5.0), (0.1, 10.0), (0.01, 0.2))

    def slopes(t: Any, y: Any, p: Any) -> Any:
        rate = p[0] * y[0] / (p[1] + y[0])
        return jnp.stack([-rate, rate])

    def solve(adjoint: Any) -> Solve:
        def one(p: Any, looks: Any, start: Any) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(slopes),
                way.method,
                0.0,
                looks[-1],
                None,
                jnp.stack([start, 0.0]),
                p,
                saveat=diffrax.SaveAt(ts=looks),
                stepsize_controller=way.control(),
                max_steps=way.steps,
                throw=False,
                adjoint=adjoint,
            ).ys[:, 1]

        return lambda p: jax.vmap(one, (None, 0, 0))(p, times, begin)

    product = way.solver(solve)

    def log_joint(z: Any) -> Any:
        p = parameters(z)
        likelihood = norm.logpdf(seen, product(p[:2]), p[2])
        return norm.logpdf(z).sum() + jnp.where(mask, likelihood, 0.0).sum()

    return log_joint


def ecoli_fed_batch(data: Experiments, way: Way) -> LogJoint:
    """Its log joint in z for one data set of one experiment without a continuous feed.

    Volumes are known, and each pulse dilutes by a known factor. So X = c x, S = c (s + g) and A = c a, with c
    and g constant between pulses, and x, s and a do not jump: one solve that stops at the events does for all.
    """
    if data.count != 1 or data.inputs:
        raise ArgumentError(
            f"the peer of E. coli takes one experiment without inputs, the data hold {data.count} and the "
            f"inputs {', '.join(data.inputs) or 'none'}; draw the data from the model's design"
        )
    at, dilution, gained = _schedule(data)
    looks, place = np.unique(data.times[0].numpy(), return_inverse=True)
    grid, before = jnp.asarray(looks), jnp.asarray(np.searchsorted(np.asarray(at), looks))
    seen = []
    for name in ("X", "S", "A", "DOTm"):
        mask, values = data.channels[name].mask[0].numpy(), data.channels[name].values
        assert values is not None
        seen.append((place[mask], jnp.asarray(values[0].numpy()[mask])))
    factors = {name: 1.25 if name.startswith("Y_") else 2.0 for name in FITTED}
    parameters = _between(
        *((value / factors[name], value * factors[name]) for name, value in FITTED.items()),
        *((0.01, 0.2), (0.01, 0.2), (0.003, 0.05), (0.2, 2.0), (0.01, 0.15), (0.003, 0.03)),
    )
    start = jnp.asarray([START[name] for name in ("X", "S", "A", "DOT", "DOTm")])

    def slopes(t: Any, y: Any, p: Any) -> Any:
        K_ap, K_sa, K_o, K_s, K_ia, K_is, p_Amax, q_Amax, q_m, q_Smax, *yields = p
        Y_as, Y_oa, Y_xa, Y_em, Y_os, Y_xsof = yields
        now = jnp.sum(at < t)
        x, s, a, dot, probe = y
        S, A = (jnp.maximum(dilution[now] * v, 0.0) for v in (s + gained[now], a))
        DOT = jnp.maximum(dot, 0.0)
        uptake = q_Smax / (1 + A / K_ia) * S / (S + K_s)
        overflow = p_Amax * uptake / (uptake + K_ap)
        oxidised = (uptake - overflow) * DOT / (DOT + K_o)
        anabolism = (oxidised - q_m) * Y_em * CARBON_X / CARBON_S
        acetate = q_Amax / (1 + uptake / K_is) * A / (A + K_sa)
        growth = (oxidised - q_m) * Y_em + acetate * Y_xa + overflow * Y_xsof
        oxygen = Y_os * (oxidised - anabolism) + acetate * Y_oa
        return jnp.stack(
            [
                growth * x,
                -uptake * x,
                (overflow * Y_as - acetate) * x,
                TRANSFER * (DOT_MAX - dot) - oxygen * dilution[now] * x * SATURATION,
                PROBE * (dot - probe),
            ]
        )

    def solve(adjoint: Any) -> Solve:
        control = diffrax.ClipStepSizeController(way.control(), jump_ts=at)
        return lambda p: (
            diffrax.diffeqsolve(
                diffrax.ODETerm(slopes),
                way.method,
                0.0,
                grid[-1],
                None,
                start,
                p,
                saveat=diffrax.SaveAt(ts=grid),
                stepsize_controller=control,
                max_steps=way.steps,
                throw=False,
                adjoint=adjoint,
            ).ys
        )

    states = way.solver(solve)

    def log_joint(z: Any) -> Any:
        p = parameters(z)
        y = states(p[:16])
        means = *(dilution[before] * v for v in (y[:, 0], y[:, 1] + gained[before], y[:, 2])), y[:, 4]
        total = norm.logpdf(z).sum()
        for (index, values), mean, level, share in zip(
            seen, means, p[16:20], p[jnp.array([20, 20, 20, 21])], strict=True
        ):
            middle = mean[index]
            total += norm.logpdf(values, middle, jnp.sqrt(level**2 + (share * middle) ** 2)).sum()
        return total

    return log_joint


def _schedule(data: Experiments) -> tuple[Any, Any, Any]:
    """Times of events (event,), and c and g (event + 1,) before the first and after each."""
    doses = data.doses
    chosen = doses.mask[0]
    order = torch.argsort(doses.time[0][chosen])
    time_, amount, target = (v[0][chosen][order].tolist() for v in (doses.time, doses.amount, doses.target))
    volume, dilution, gained = START["V"], [1.0], [0.0]
    for much, index in zip(amount, target, strict=True):
        pulse = doses.targets[index] == "pulse"
        after = volume + much if pulse else volume - much
        dilution.append(dilution[-1] * volume / after if pulse else dilution[-1])
        gained.append(gained[-1] + (FEED_S * much / after / dilution[-1] if pulse else 0.0))
        volume = after
    return jnp.asarray(time_), jnp.asarray(dilution), jnp.asarray(gained)


PEERS: Mapping[str, Callable[[Experiments, Way], LogJoint]] = {
    "michaelis_menten": michaelis_menten,
    "ecoli_fed_batch": ecoli_fed_batch,
}


def agrees(model: Model, data: Experiments, name: str, z: Tensor) -> float:
    """The largest relative difference from ampost's log joint at z (draw, z), both solved finely.

    Raises:
        ArgumentError: it is above 1e-6.
    """
    rtol, atol, steps = FINE
    fine = replace(model, solver=Compiled(rtol=rtol, atol=atol, max_steps=steps))
    with torch.no_grad():
        mine = fine.log_joint(z[:, None], data)[:, 0].numpy()
    way = replace(WAYS[name][0], rtol=rtol, atol=atol, steps=steps)
    log_joint = jax.jit(PEERS[name](data, way))
    theirs = np.array([float(log_joint(row)) for row in z.numpy()])
    apart = float(np.abs(theirs / mine - 1).max())
    if not apart <= AGREE:
        raise ArgumentError(
            f"the log joints of {name} differ: {mine.tolist()} by ampost, {theirs.tolist()} in JAX, expected "
            f"the same to {AGREE:g}; the model was changed in one place only"
        )
    return apart


def fastest(data: Experiments, name: str, z: Tensor) -> tuple[Way, dict[str, float]]:
    """The way with the fastest gradients at z (draw, z), and the seconds of one by each that does not fail."""
    seconds: dict[Way, float] = {}
    points = z.numpy()
    for way in WAYS[name]:
        gradient = jax.jit(jax.value_and_grad(PEERS[name](data, way)))
        found = [jax.block_until_ready(gradient(row)) for row in points]
        if all(np.isfinite(value) and np.isfinite(slope).all() for value, slope in found):
            seconds[way] = _timed(lambda g=gradient: [jax.block_until_ready(g(row)) for row in points])
    if not seconds:
        raise ArgumentError(
            f"each of {', '.join(way.name for way in WAYS[name])} fails at some of {len(points)} draws of the "
            f"posterior; give a way more steps"
        )
    each = {way.name: took / len(points) for way, took in seconds.items()}
    return min(seconds, key=seconds.__getitem__), each


def side_by_side(data: Experiments, name: str, way: Way, z: Tensor) -> float:
    """Seconds of the gradients at all of z (draw, z), vectorized."""
    gradient = jax.jit(jax.vmap(jax.value_and_grad(PEERS[name](data, way))))
    points = z.numpy()
    jax.block_until_ready(gradient(points))
    return _timed(lambda: jax.block_until_ready(gradient(points)))


def _timed(call: Callable[[], object]) -> float:
    """The least seconds of three calls."""
    took = []
    for _ in range(3):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return min(took)


def moved(log_joint: LogJoint, centre: Tensor, factor: Tensor) -> LogJoint:
    """The log joint in coordinates u (z,) with z = centre + factor u, up to a constant."""
    middle, spread = jnp.asarray(centre.numpy()), jnp.asarray(factor.numpy())
    return lambda u: log_joint(middle + spread @ u)


def by_numpyro(
    log_joint: LogJoint, starts: Tensor, warmup: int, seed: int, metric: bool, block: int, vectorized: bool
) -> Sampler:
    """NumPyro's NUTS from `starts` (chain, z), compiled for blocks of draws; chains side by side or in turn.

    It adapts a full mass matrix, unless the `metric` is right from the start.
    """
    begin, sample = hmc(potential_fn=lambda z: -log_joint(z))

    def first(z: Any, key: Any) -> Any:
        return begin(
            z,
            num_warmup=warmup,
            step_size=STEP if metric else 1.0,
            dense_mass=True,
            adapt_mass_matrix=not metric,
            rng_key=key,
        )

    def several(state: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state = sample(state)
            return state, (state.z, state.num_steps)

        return jax.lax.scan(step, state, None, length=block)

    began = time.process_time()
    keys = jax.random.split(jax.random.key(derive(seed, "numpyro") % 2**32), len(starts))
    places = jnp.asarray(starts.numpy())
    if vectorized:
        states = [jax.jit(jax.vmap(first))(places, keys)]
        compiled = jax.jit(jax.vmap(several)).lower(states[0]).compile()
    else:
        one = jax.jit(first)
        states = [one(z, key) for z, key in zip(places, keys, strict=True)]
        compiled = jax.jit(several).lower(states[0]).compile()
    jax.block_until_ready(states)
    compiling = time.process_time() - began

    def advance() -> tuple[Tensor, int]:
        found = []
        for k, state in enumerate(states):
            states[k], drawn = compiled(state)
            found.append(jax.tree.map(np.asarray, drawn))
        stack = np.concatenate if vectorized else np.stack
        return torch.from_numpy(stack([z for z, _ in found])), int(sum(n.sum() for _, n in found))

    name = f"NumPyro, {'vectorized' if vectorized else 'sequential'}"
    return Sampler(name, warmup, block, compiling, advance)
