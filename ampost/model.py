"""A Pyro program as a model: its sites, its z-space, and batched prior, likelihood and simulation.

z is where the prior is (close to) standard normal: at each latent site z passes through that
site's own distribution, so priors that depend on other sites need no special case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.poutine
import torch
from torch import Tensor

from ampost.bijection import bijection, standardise
from ampost.design import Design
from ampost.errors import ExperimentError, ModelError
from ampost.experiments import Experiments
from ampost.ode.failures import Failure
from ampost.ode.problem import Solver
from ampost.ode.solvers import default
from ampost.passes import (
    Asked,
    Fixed,
    Holding,
    NoNumber,
    Pass,
    PriorDraw,
    Site,
    double,
    idle,
    no_numbers,
    noise_of,
    refuse_dead_odes,
    refuse_same_names,
    total,
    watched,
)
from ampost.program import Program, answering, is_observation, recording
from ampost.seeds import derive, seeded
from ampost.sound import refuse_unsound
from ampost.units import converted, converted_design, refuse_meaningless

CHUNK = 40_000


@dataclass(frozen=True)
class Scores:
    """Log densities of a batch (draw, dataset): prior and likelihood in z, the latter by channel."""

    log_prior: Tensor
    log_likelihood: Tensor
    pointwise: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    deterministic: Mapping[str, Tensor]
    site_log_prior: Mapping[str, Tensor]
    failed: Tensor

    @property
    def log_joint(self) -> Tensor:
        """Log prior + log likelihood in z; -inf where the ODE failed."""
        return self.log_prior + self.log_likelihood


@dataclass(frozen=True)
class Simulation:
    """Draws from prior and likelihood: z (draw, z), experiments with values, and what failed.

    Failed are draws whose ODE could not be solved, and those with a value that is no finite number. `failures`
    holds the first few, those of the ODE with a snippet that runs it again.
    """

    z: Tensor
    parameters: Mapping[str, Tensor]
    experiments: Experiments
    failed: Tensor
    failures: tuple[Failure | NoNumber, ...] = ()


@dataclass(frozen=True)
class Model:
    """A program, the design it is meant for, units by name, and who solves its ODEs.

    `units` are those of states, channels, inputs, conditions, parameters and "time" as the program takes
    them; data and design are converted to them. Where they say nothing, those of the design hold.

    Raises:
        ModelError: a discrete latent, data-dependent structure, no observation, a bare
            `pyro.sample(obs=)`, or a plate on the time axis.
        OdeError: no ODE can be solved past its start for any of a few prior draws.
        UnitError: a unit without meaning, or a design in units that cannot be converted.
    """

    program: Program
    design: Design
    units: Mapping[str, str] = field(default_factory=dict)
    solver: Solver = field(default_factory=default)
    _layouts: dict[int, tuple[Site, ...]] = field(default_factory=dict, repr=False, compare=False)
    _channels: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        refuse_meaningless(self.units)
        adopted = {name.removeprefix("dose "): unit for name, unit in self.design.units.items()}
        object.__setattr__(self, "units", {**adopted, **self.units})
        object.__setattr__(self, "design", converted_design(self.design, self.units))
        self.sites(self.design.experiments[1])

    @property
    def name(self) -> str:
        """The program's name."""
        return str(getattr(self.program, "__name__", type(self.program).__name__))

    @property
    def channels(self) -> tuple[str, ...]:
        """What the program observes."""
        return tuple(self._channels)

    def sites(self, experiments: int | None = None) -> tuple[Site, ...]:
        """The latent sites for a number of experiments (the design's largest by default)."""
        count = self.design.experiments[1] if experiments is None else experiments
        if count not in self._layouts:
            self._layouts[count] = self._trace(count)
        return self._layouts[count]

    def z_size(self, experiments: int | None = None) -> int:
        """Number of coordinates of z."""
        return sum(site.size for site in self.sites(experiments))

    def fix(self, **values: float) -> Model:
        """The model with latent sites held at `values`; they leave z."""
        known = {site.name for site in self.sites()}
        for name in values:
            if name not in known:
                raise ModelError(f"cannot fix {name!r}: the latent sites are {', '.join(sorted(known))}")
        program = Fixed(values)(self.program)
        program.__name__ = self.name
        return Model(program, self.design, self.units, self.solver)

    def score(self, z: Tensor, data: Experiments) -> Scores:
        """Everything about z (draw, dataset, z) under `data` ((dataset,) experiment, time).

        One call for all rows, in chunks of bounded size; gradients flow to z.
        """
        data = data if data.batch else data.unsqueezed(1)
        rows = max(1, CHUNK // max(1, data.batch[0] * data.count))
        parts = [self._score(chunk, data) for chunk in z.split(rows)]
        if len(parts) == 1:
            return parts[0]
        return Scores(*(_cat([getattr(p, name) for p in parts]) for name in Scores.__dataclass_fields__))

    def run(self, z: Tensor, data: Experiments, solver: Solver | None = None) -> Pass:
        """One pass that scores z (draw, dataset, z) under data (dataset, ...): all that its handlers saw."""
        return self._run(z, data, self.solver if solver is None else solver, draw=False)

    def log_joint(self, z: Tensor, data: Experiments) -> Tensor:
        """Log joint density in z, (draw, dataset): log p(data | theta) + log p(theta) + log |d theta / d z|."""
        return self.score(z, data).log_joint

    def parameters(self, z: Tensor, data: Experiments) -> dict[str, Tensor]:
        """Parameters on the user's scale, each (draw, dataset, ...), without solving any ODE."""
        data = data if data.batch else data.unsqueezed(1)
        run = self._run(z, data.without_values(), solver=idle, draw=False)
        return run.named(self.sites(data.count))

    def coordinates(self, parameters: Mapping[str, Tensor], data: Experiments) -> Tensor:
        """z (draw, dataset, z) of parameters as `parameters` gives them; not finite outside of the prior."""
        data = data if data.batch else data.unsqueezed(1)
        first = next(iter(parameters.values()))
        run = self._run(
            None, data.without_values(), solver=idle, draw=False, lead=tuple(first.shape[:2]), given=parameters
        )
        return run.z_of(self.sites(data.count))

    def log_volume(self, z: Tensor, data: Experiments) -> Tensor:
        """log |d theta / d z| (draw, dataset) of z (draw, dataset, z), without solving any ODE."""
        data = data if data.batch else data.unsqueezed(1)
        run = self._run(z, data.without_values(), solver=idle, draw=False)
        volume = run.total_log_prior
        for value in run.site_log_prior.values():
            volume = volume - value
        return volume

    def simulate(self, count: int, seed: int, experiments: Experiments | None = None) -> Simulation:
        """`count` draws of parameters from the prior and of data, at `experiments` or at the design's."""
        looks = experiments
        if looks is None:
            looks = self.design.draw(count, derive(seed, "design"))
        if not looks.batch:
            looks = looks.expand((count,))
        return self.simulate_at(None, looks, derive(seed, "values"))

    def simulate_at(
        self, z: Tensor | None, looks: Experiments, seed: int, solver: Solver | None = None
    ) -> Simulation:
        """Data at `looks` (draw, experiment, time) for parameters z (draw, z), or prior draws if None.

        A failed trajectory keeps its last finite state while noise is drawn, and is marked.
        """
        holding = Holding(self.solver if solver is None else solver)
        looks = looks.without_values()
        with seeded(seed):
            given = None if z is None else z[:, None]
            run = self._run(
                given, looks.map(lambda t: t[:, None]), holding, draw=True, lead=(looks.batch[0], 1)
            )
            values = {k: v.reshape(looks.times.shape) for k, v in run.values.items()}
            shown = looks.with_values(values, run.counts)
        sites = self.sites(looks.count)
        parameters = {k: v[:, 0] for k, v in run.named(sites).items()}
        failed = holding.failed((looks.batch[0], 1))[:, 0]
        examples: list[Failure | NoNumber] = [
            *holding.examples,
            *no_numbers(looks, values, parameters, failed),
        ]
        for name, value in values.items():
            if name in looks.channels:
                failed = failed | (looks.channels[name].mask & ~torch.isfinite(value)).any(-1).any(-1)
        return Simulation(
            z=run.z_of(sites)[:, 0] if z is None else z,
            parameters=parameters,
            experiments=shown,
            failed=failed,
            failures=tuple(examples),
        )

    def noises(self, z: Tensor, looks: Experiments, solver: Solver | None = None) -> dict[str, Any]:
        """The noise of each channel at `looks` (draw, experiment, time) for parameters z (draw, z), undrawn.

        Each is a distribution of batch shape (draw, 1, ..., experiment, time), masked where nothing is seen.
        """
        looks = looks.without_values()
        answering_solver = self.solver if solver is None else solver
        return self._run(z[:, None], looks.map(lambda t: t[:, None]), answering_solver, draw=False).noises

    def prepare(self, data: Experiments) -> Experiments:
        """The data in the model's units, after refusing what the program cannot score."""
        data = converted(data, self.units)
        self.check_data(data)
        return data

    def check_data(self, data: Experiments) -> None:
        """Refuse data that the program cannot score, by channel, value and fix."""
        for name in data.channels:
            if name not in self._channels:
                raise ExperimentError(
                    f"the data hold channel {name!r}, the program observes "
                    f"{', '.join(self._channels)}; rename the observable"
                )
            if data.channels[name].values is None:
                raise ExperimentError(
                    f"channel {name!r} of the data holds no values, only where to look; give measured or "
                    f"simulated values (Experiments.with_values)"
                )
        refuse_unsound(data)
        known = data if data.batch else data.unsqueezed(1)
        z = torch.zeros(1, known.batch[0], self.z_size(data.count), dtype=torch.float64)
        run = self._run(z, known, self.solver, draw=False)
        for name, noise in run.noises.items():
            channel = known.channels[name]
            assert channel.values is not None
            exact = channel.mask if channel.censoring is None else channel.mask & (channel.censoring == 0)
            base = noise_of(noise)
            good = base.support.check(torch.where(exact, channel.values, torch.nan))
            _refuse_value(name, base, known, ~good.reshape(channel.mask.shape) & exact, "the value")
            scored = run.log_likelihood[name].reshape(channel.mask.shape)
            impossible = channel.mask & ~exact & (scored == -torch.inf)
            _refuse_value(name, base, known, impossible, "the limit or interval")

    def fingerprint(self, design: Design | None = None) -> dict[str, Any]:
        """The model's behaviour: sites, channels, log joint and parameters at fixed z, 6 digits.

        It is looked at under `design`, by default the model's own.
        """
        if design is not None:
            return replace(self, design=design, _layouts={}, _channels=[]).fingerprint()
        sites = self.sites()
        looks = self.design.draw(1, seed=0)
        generator = torch.Generator().manual_seed(0)
        z = 0.5 * torch.randn(3, 1, self.z_size(), generator=generator, dtype=torch.float64)
        data = self.simulate_at(torch.zeros(1, self.z_size(), dtype=torch.float64), looks, seed=0)
        scores = self.score(z, data.experiments)
        numbers = [*scores.log_joint.flatten().tolist()]
        numbers += [float(v.sum()) for v in scores.parameters.values()]
        return {
            "sites": [[s.name, list(s.batch), list(s.event)] for s in sites],
            "channels": list(self._channels),
            "behaviour": [f"{number:.5e}" for number in numbers],
        }

    def _score(self, z: Tensor, data: Experiments) -> Scores:
        holding = Holding(self.solver, hold=False)
        run = self._run(z, data, holding, draw=False)
        lead = tuple(z.shape[:-1])
        likelihood = torch.zeros(lead, dtype=z.dtype)
        for value in run.log_likelihood.values():
            likelihood = likelihood + total(value, lead, run.depth)
        failed = holding.failed(lead) | torch.isnan(likelihood.detach())
        return Scores(
            log_prior=run.total_log_prior,
            log_likelihood=torch.where(failed, -torch.inf, likelihood),
            pointwise={k: v.expand(*lead, *v.shape[2:]) for k, v in run.log_likelihood.items()},
            parameters=run.named(self.sites(data.count)),
            deterministic=run.deterministic,
            site_log_prior=run.site_log_prior,
            failed=failed,
        )

    def _run(
        self,
        z: Tensor | None,
        data: Experiments,
        solver: Solver,
        draw: bool,
        lead: tuple[int, ...] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> Pass:
        """One pass over the program; z (draw, dataset, z), data (dataset | draw and 1, ...)."""
        sites = self.sites(data.count)
        depth = max(len(s.batch) for s in sites) if sites else 2
        if len(data.batch) == 1:
            data = data.unsqueezed(1)
        if depth > 2:
            gap = (1,) * (depth - 2)
            data = data.map(lambda t: t.reshape(*t.shape[:2], *gap, *t.shape[2:]))
        shape = tuple(z.shape[:-1]) if lead is None and z is not None else lead
        assert shape is not None
        run = Pass(sites, z, shape, depth, draw, given)
        with double(), run, answering(solver):
            self.program(data)
        return run

    def _trace(self, count: int) -> tuple[Site, ...]:
        design = replace(self.design, experiments=(count, count))
        template = design.draw(1, seed=0).at(0)
        solved = recording()
        with solved:
            first = self._sites_of(template, seed=1)
        refuse_same_names(solved.solved)
        names = [s[0] for s in first]
        for seed in range(2, 6):
            with solved:
                again = [s[0] for s in self._sites_of(template, seed)]
            if names == again:
                continue
            differ = set(names) ^ set(again)
            raise ModelError(
                f"the program's sites change from run to run ({', '.join(sorted(differ)) or 'order'}"
                f"): ampost needs the same latent sites whatever their values"
            )
        refuse_dead_odes(solved.solved)
        sites: list[Site] = []
        start = 0
        depth = max([2, *(len(s[1].batch_shape) for s in first)])
        draws = None
        for name, fn, local in first:
            batch = (1,) * (depth - len(fn.batch_shape)) + tuple(fn.batch_shape)
            shaped = bijection(fn)
            standard = None
            if not shaped.exact:
                draws = self._prior_draws(template) if draws is None else draws
                standard = standardise(fn, draws[name])
            site = Site(
                name,
                batch,
                tuple(fn.event_shape),
                tuple(shaped.z_shape()),
                start,
                shaped.exact,
                standard,
                local,
            )
            sites.append(site)
            start += site.size
        return tuple(sites)

    def _sites_of(self, template: Experiments, seed: int) -> list[tuple[str, Any, bool]]:
        """Latent sites of one plain run, and whether each is local; what cannot be a model is refused."""
        asked, read = Asked(), list[str]()
        with double(), seeded(seed), asked, answering(self.solver):
            trace = pyro.poutine.trace(self.program).get_trace(watched(template, read))
        unknown = [channel for channel in read if channel not in asked.channels]
        if unknown:
            raise ModelError(
                f"the program {self.name!r} reads a column of channel {unknown[0]!r}, which it does not "
                f"observe; it observes {', '.join(asked.channels) or 'nothing'}: correct the name"
            )
        latents = []
        nodes: Mapping[str, Any] = trace.nodes
        for name, site in nodes.items():
            if site["type"] != "sample" or site["infer"].get("_deterministic"):
                continue
            if type(site["fn"]).__name__ == "_Subsample" or is_observation(site):
                continue
            if site["is_observed"]:
                raise ModelError(
                    f"site {name!r} is a bare pyro.sample(obs=...); use ampost.observe({name!r}, "
                    f"noise, experiments), so that simulation, masks and scoring agree"
                )
            fn = site["fn"]
            if getattr(fn.support, "is_discrete", False):
                raise ModelError(
                    f"latent site {name!r} is discrete ({type(fn).__name__}); sum it out of the "
                    f"likelihood or make it continuous"
                )
            if len(fn.batch_shape) and fn.batch_shape[-1] != 1:
                raise ModelError(
                    f"latent site {name!r} has batch shape {tuple(fn.batch_shape)}: its last axis "
                    f"is time; use `with experiments.plate():` for a value per experiment, and "
                    f"dim=-3 or further left for plates of your own"
                )
            others = [f.name for f in site["cond_indep_stack"] if f.dim == -2 and f.name != "experiments"]
            if others or (len(fn.batch_shape) > 1 and fn.batch_shape[-2] not in (1, template.count)):
                raise ModelError(
                    f"latent site {name!r} has batch shape {tuple(fn.batch_shape)}"
                    f"{' by plate ' + repr(others[0]) if others else ''}: its axis -2 is the experiments; "
                    f"use `with experiments.plate():` for a value per experiment, and dim=-3 or further "
                    f"left for plates of your own"
                )
            latents.append((name, fn, any(f.name == "experiments" for f in site["cond_indep_stack"])))
        if not asked.channels:
            raise ModelError(
                f"the program {self.name!r} observes nothing; add ampost.observe(channel, noise, experiments)"
            )
        if not latents:
            raise ModelError(
                f"the program {self.name!r} has no latent site: there is nothing to infer; add a "
                f"pyro.sample for each unknown"
            )
        if not set(asked.channels) & set(self.design.channels):
            raise ModelError(
                f"the program {self.name!r} observes {', '.join(asked.channels)}, the design (or the table it "
                f"was made from) has {', '.join(self.design.channels)}; give both the same names"
            )
        self._channels[:] = asked.channels
        return latents

    def _prior_draws(self, template: Experiments) -> dict[str, Tensor]:
        run = PriorDraw()
        values: dict[str, list[Tensor]] = {}
        with double(), seeded(0):
            for _ in range(500):
                with run, answering(idle):
                    self.program(template)
                for name, value in run.values.items():
                    values.setdefault(name, []).append(value)
        return {name: torch.stack(v) for name, v in values.items()}


def _refuse_value(name: str, noise: Any, data: Experiments, bad: Tensor, what: str) -> None:  # noqa: ANN401
    """Name the first of the measurements (dataset, experiment, time) that the noise makes impossible."""
    if not bool(bad.any()):
        return
    d, e, t = bad.nonzero()[0].tolist()
    values = data.channels[name].values
    assert values is not None
    names = data.names[d] if d < len(data.names) else data.names[0]
    raise ExperimentError(
        f"channel {name!r} has {what} {float(values[d, e, t]):g} at time {float(data.times[d, e, t]):g} of "
        f"experiment {names[e] if e < len(names) else e!r}, outside the support of its noise "
        f"{type(noise).__name__}; leave the row out, mark it as censored, or use a noise that allows it"
    )


def _cat(parts: list[Any]) -> Any:  # noqa: ANN401 - tensors or dicts of them
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
