"""Amortized Bayesian inference for ODE models, checked and corrected against the true model.

A model is one Pyro program, and the ODE inside it is an effect; every stage is another
interpretation of that program. Names are loaded on first use, so `import ampost` is quick.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "AmpostError": "errors",
    "between": "distributions",
    "TruncatedNormal": "distributions",
    "Experiments": "experiments",
    "Doses": "experiments",
    "Input": "experiments",
    "Design": "design",
    "Looks": "plans",
    "DosePlan": "plans",
    "InputPlan": "plans",
    "read_table": "tables",
    "read_nonmem": "nonmem",
    "Compiled": "ode.compiled",
    "Eager": "ode.eager",
    "failures": "ode.failures",
    "tsitouras": "ode.methods",
    "rodas": "ode.methods",
    "Potential": "potential",
    "odeint": "program",
    "observe": "program",
    "answering": "program",
    "recording": "program",
    "Model": "model",
    "Estimator": "estimator",
    "infer": "inference",
    "train": "inference",
    "Budget": "correction",
    "Settings": "learning",
    "Refining": "refining",
    "Proxy": "proxy",
    "ProxySettings": "proxy",
    "train_proxy": "proxy",
    "Schedule": "training",
    "Architecture": "architecture",
    "calibrate": "calibration",
    "compare": "comparison",
    "compare_methods": "comparison",
    "check": "checking",
    "predict": "prediction",
    "summary": "results",
    "Verdict": "results",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(f"ampost.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in {"zoo", "plots", "baselines"}:
        return import_module(f"ampost.{name}")
    raise AttributeError(f"module 'ampost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "zoo", "plots", "baselines"])
