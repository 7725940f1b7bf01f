"""Errors of ampost: each message names the thing, the value, what was expected and the fix.

They derive from `Exception`, not `ValueError`: Pyro rebuilds a `ValueError` raised inside a
program and loses its class.
"""


class AmpostError(Exception):
    """Base of every error that ampost raises on purpose."""


class ArgumentError(AmpostError):
    """An argument of a public function is outside its range."""


class TableError(AmpostError):
    """A table cannot be read as measurements: a column, row or value is wrong."""


class UnitError(AmpostError):
    """A unit has no meaning, or cannot be converted to the one that is wanted."""


class ExperimentError(AmpostError):
    """A record of experiments is inconsistent, or lacks what was asked of it."""


class DesignError(AmpostError):
    """A design is impossible, or data lie outside it."""


class ModelError(AmpostError):
    """A program cannot serve as a model: its sites, plates or observations are wrong."""


class OdeError(AmpostError):
    """An ODE problem is ill-posed: right-hand side, initial state, parameters or doses."""


class UnsupportedError(AmpostError):
    """A thing that the record can hold but that this stage does not handle yet."""


class TrainingError(AmpostError):
    """Training cannot go on: no usable simulations, or a loss that is not finite."""


class CheckpointError(TrainingError):
    """A checkpoint is of another training, or damaged."""


class EstimatorError(AmpostError):
    """An estimator does not belong to the model, design or data that it is asked about."""


class BankError(AmpostError):
    """A bank belongs to another model, design or seed, or is at work elsewhere."""


class FileError(AmpostError):
    """A file is damaged, of another kind, or of another format."""


class FormatError(FileError):
    """A file was written by an earlier or a later ampost."""
