"""The bank: prior x the ODE's half of a design, each trajectory drawn once, in shards on disk.

Shard k is a function of (model, design, seed, k) alone. So a bank that was interrupted goes on, one that grows
keeps its shards, and any number of workers makes the same ones. Training reads it window by window, and memory
does not grow with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import torch
from filelock import FileLock, Timeout

from ampost import files
from ampost.behaviour import difference
from ampost.design import Design
from ampost.errors import ArgumentError, BankError, FileError, FormatError, TrainingError
from ampost.knots import drawn, enough, table
from ampost.model import Model
from ampost.ode.failures import Failure
from ampost.passes import idle
from ampost.progress import progress, tell
from ampost.seeds import derive
from ampost.shards import Packed, Shard, end_to_end, failure, packed, unpacked

ROWS = 5_000  # of a shard, at most
HOPELESS = 500  # simulations that all fail, after which no more are tried
WINDOW = 256_000_000  # bytes held while training
STEPS = 100  # of training on one window
QUANTILES = 101  # of each parameter's prior, kept to say where simulations fail
FAILED = "failed "  # begins the names of tensors that tell what failed
TOP = "bank.ampost"
REMEDY = (
    "ampost.bank.build(model, rows, seed, folder) with the same model and seed makes what is not there, and "
    "what is finished stays"
)

Header = Mapping[str, Any]
Read = TypeVar("Read")
Made = tuple[int, Header, dict[str, np.ndarray[Any, Any]]]
_alone = threading.Lock()  # Pyro's handlers are those of the process: programs run in one thread at a time


@dataclass(frozen=True)
class Origin:
    """What a bank is a function of, rows of a shard and knots included; `shards` is how many there should be.

    `quantiles` are those of each parameter under the prior, on the user's scale, in `units`.
    """

    model: str
    fingerprint: Mapping[str, Any]
    design: Design
    seed: int
    rows: int
    knots: int
    shards: int
    quantiles: Mapping[str, list[float]]
    units: Mapping[str, str]

    @cached_property
    def identity(self) -> str:
        """The same for all shards of a bank, however many there are."""
        parts = [self.fingerprint, self.design.to_json(), self.seed, self.rows, self.knots]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Bank:
    """A finished bank in a folder: where it comes from and the header of each shard.

    A shard is read when it is asked for, and its checksum verified.
    """

    folder: Path
    origin: Origin
    headers: tuple[Header, ...]
    _recent: dict[tuple[int, ...], Shard] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Usable rows."""
        return sum(header["rows"] for header in self.headers)

    @property
    def failures(self) -> int:
        """Rows whose ODE could not be solved; they are left out."""
        return sum(header["failures"] for header in self.headers)

    @property
    def solves(self) -> int:
        """Trajectories that were simulated, those that failed included.

        Each counts once, though it is integrated about four times to place its knots and to check them.
        """
        return len(self) + self.failures

    @property
    def reasons(self) -> Counter[str]:
        """How many rows failed for which reason."""
        return sum((Counter(header["reasons"]) for header in self.headers), Counter())

    @property
    def examples(self) -> tuple[Failure, ...]:
        """The first few failures, each with a snippet that runs it again."""
        return tuple(failure(stored) for header in self.headers for stored in header["examples"])[:3]

    def belongs_to(self, model: Model) -> None:
        """Raise BankError unless this bank was simulated for the model's behaviour and design."""
        _refuse_other(self.folder, self.origin, model)

    def shard(self, k: int) -> Shard:
        """Shard k; the last one read is kept.

        Raises:
            FileError: it is damaged or not there.
        """
        if not 0 <= k < len(self.headers):
            raise ArgumentError(
                f"shard {k} of a bank of {len(self.headers)}: expected 0 to {len(self.headers) - 1}"
            )
        if not self.headers[k]["rows"]:
            raise ArgumentError(f"shard {k} has no rows: all of its simulations failed; take another")
        return self._joined((k,))

    def window(self, step: int, seed: int) -> Shard:
        """The rows that training step `step` chooses from, a function of (seed, step) alone.

        A bank that fits into memory is one window. Else a window is some shards, and changes every 100 steps
        along seeded permutations of all shards, so that every row is met.
        """
        full, windows = self._windows
        if windows == 1:
            return self._joined(full)
        epoch, place = divmod(step // STEPS, windows)
        order = torch.randperm(len(full), generator=torch.Generator().manual_seed(derive(seed, "epoch", epoch)))
        return self._joined(tuple(full[k] for k in order.tensor_split(windows)[place].tolist()))

    @cached_property
    def _windows(self) -> tuple[tuple[int, ...], int]:
        """The shards that have rows, and how many windows they make."""
        full = tuple(k for k, header in enumerate(self.headers) if header["rows"])
        if not full:
            raise BankError(f"the bank in {str(self.folder)!r} has no rows: all its simulations failed")
        largest = max(path_of(self.folder, k).stat().st_size for k in full)
        return full, math.ceil(len(full) / max(1, WINDOW // largest))

    def _joined(self, chosen: tuple[int, ...]) -> Shard:
        """Shards end to end; the last answer is kept, and dropped before the next one is read."""
        if chosen not in self._recent:
            self._recent.clear()
            headers = [self.headers[k] for k in chosen]
            tensors = end_to_end(
                (_read(self.folder, self.origin, k) for k in chosen), [h["rows"] for h in headers]
            )
            whole = {
                **headers[0],
                "rows": sum(h["rows"] for h in headers),
                "failures": sum(h["failures"] for h in headers),
                "reasons": sum((Counter(h["reasons"]) for h in headers), Counter()),
                "examples": [e for h in headers for e in h["examples"]][:3],
            }
            self._recent[chosen] = unpacked(whole, tensors)
        return self._recent[chosen]


def build(
    model: Model, rows: int, seed: int, folder: str | Path | None = None, show: bool | None = None
) -> Bank:
    """Solve at least `rows` prior draws under the design's protocols, in `folder` or in one of its own.

    What is finished in `folder` stays: the bank goes on after an interruption, grows when more rows are asked
    for, and a damaged shard is made again. Without a folder the bank is removed when nothing refers to it any
    more. `joblib.parallel_config` says where shards are made; by default in this process.

    Raises:
        ArgumentError: fewer than one row.
        BankError: the folder holds a bank of another model, design or seed, or something else, or another
            process builds in it.
        FileError: a shard cannot be written, as the disk is full, say.
        TrainingError: every simulation of a shard failed.
    """
    if rows < 1:
        raise ArgumentError(f"a bank of {rows} rows: expected at least 1")
    if folder is not None:
        return _built(model, rows, seed, Path(folder), show)
    own = Path(tempfile.mkdtemp(prefix="ampost-bank-"))
    try:
        bank = _built(model, rows, seed, own, show)
    except BaseException:
        shutil.rmtree(own)
        raise
    weakref.finalize(bank, shutil.rmtree, own, ignore_errors=True)
    return bank


def open_bank(folder: str | Path) -> Bank:
    """The bank in a folder; no code is run.

    Raises:
        FileError: there is no bank, or some of its shards are not there.
    """
    folder = Path(folder)
    origin = origin_of(folder)
    missing = [k for k in range(origin.shards) if not path_of(folder, k).is_file()]
    if missing:
        raise FileError(
            f"the bank in {str(folder)!r} lacks {len(missing)} of {origin.shards} shards (the first is "
            f"{path_of(folder, missing[0]).name!r}); {REMEDY}"
        )
    return Bank(folder, origin, tuple(_stored(folder, k, files.peek) for k in range(origin.shards)))


def origin_of(folder: Path) -> Origin:
    """Where the bank in a folder comes from."""
    if not (folder / TOP).is_file():
        raise FileError(
            f"there is no bank in {str(folder)!r}, which has no file {TOP}; give the folder of a bank, or make "
            f"one by ampost.bank.build(model, rows, seed, folder)"
        )
    stored = files.load(folder / TOP, "bank")[0]
    return Origin(**{**stored, "design": Design.from_json(stored["design"])})


def path_of(folder: Path, k: int) -> Path:
    """The file of shard k."""
    return folder / f"shard-{k:05d}.ampost"


def _built(model: Model, rows: int, seed: int, folder: Path, show: bool | None) -> Bank:
    """The bank in `folder` with at least `rows` rows; what is not there is made."""
    if folder.exists() and not folder.is_dir():
        raise BankError(f"{str(folder)!r} is to be the folder of a bank, but it is a file; give another name")
    folder.mkdir(parents=True, exist_ok=True)
    with _only(folder):
        for left in (*folder.glob(".shard-*.ampost.*"), *folder.glob(f".{TOP}.*")):
            left.unlink()  # what an interruption left
        origin = _begun(model, rows, seed, folder)
        there = _there(folder)
        sound = _sound(folder, origin, there, show)
        wanted = max(math.ceil(rows / origin.rows), *(k + 1 for k in there), 1)  # a bank does not shrink
        if wanted != origin.shards:
            origin = replace(origin, shards=wanted)
            stored = {name: getattr(origin, name) for name in Origin.__dataclass_fields__}
            files.save(folder / TOP, "bank", {**stored, "design": origin.design.to_json()}, {})
        missing = [k for k in range(wanted) if k not in sound]
        try:
            _fill(model, origin, folder, missing, show)
        except TrainingError:
            if not _there(folder):
                (folder / TOP).unlink()
            raise
    bank = open_bank(folder)
    if not len(bank):
        raise TrainingError(f"all {bank.failures} simulations of {model.name!r} failed; narrow the prior")
    return bank


def _fill(model: Model, origin: Origin, folder: Path, missing: list[int], show: bool | None) -> None:
    """Make the missing shards and write each as it comes."""
    solved = any(_stored(folder, k, files.peek)["rows"] for k in range(origin.shards) if k not in missing)
    failed = 0
    with (
        progress("simulating", len(missing) * origin.rows, show) as bar,
        closing(_all(model, origin, missing)) as all_,
    ):
        for k, header, arrays in all_:
            solved, failed = solved or header["rows"] > 0, failed + header["failures"]
            if not solved and (failed >= HOPELESS or origin.shards == 1):
                example = header["examples"][0] if header["examples"] else None
                raise TrainingError(
                    f"all {failed} simulations of {model.name!r} failed; narrow the prior. "
                    f"{failure(example) if example else ''}"
                )
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            files.save(path_of(folder, k), "shard", header, tensors)
            bar.advance(origin.rows)


def _all(model: Model, origin: Origin, missing: list[int]) -> Generator[Made, None, None]:
    """The shards in any order, by whatever joblib is configured to."""
    work = joblib.delayed(_made)
    tasks = [work(model, origin.identity, origin.rows, origin.seed, origin.knots, k) for k in missing]
    try:
        answer = joblib.Parallel(return_as="generator_unordered", batch_size=1)
    except ValueError:  # the backends of Ray and multiprocessing answer with lists only
        width = 2 * joblib.effective_n_jobs()
        for start in range(0, len(tasks), width):
            yield from joblib.Parallel(batch_size=1)(tasks[start : start + width])
        return
    yield from answer(tasks)


def _made(model: Model, identity: str, rows: int, seed: int, knots: int, k: int) -> Made:
    """Shard k, as it is stored."""
    with _alone:
        made = drawn(model, rows, derive(seed, "bank", k), knots)
    header, tensors = packed(made.shard)
    if len(made.status):
        tensors |= {f"{FAILED}parameters": made.failed, f"{FAILED}status": made.status.to(torch.int8)}
    header |= {"bank": identity, "errors": [float(f"{error:.3g}") for error in made.errors.tolist()]}
    return k, header, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _begun(model: Model, rows: int, seed: int, folder: Path) -> Origin:
    """The origin of the bank in `folder`, which must be this one, or of a new bank."""
    if (folder / TOP).exists() or _there(folder):
        try:
            origin = origin_of(folder)
        except FormatError:
            raise
        except FileError:
            origin = _again(model, seed, folder)
        _refuse_other(folder, origin, model)
        if origin.seed != seed:
            raise BankError(
                f"the bank in {str(folder)!r} was simulated with seed {origin.seed}, this one is asked for "
                f"seed {seed}; give the same seed, or another folder"
            )
        return origin
    strange = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if strange:
        raise BankError(
            f"the folder {str(folder)!r} is to hold a bank, but holds {strange[0]!r} and no {TOP}; give a new "
            f"or empty folder"
        )
    return _origin(model, math.ceil(rows / math.ceil(rows / ROWS)), seed)


def _origin(model: Model, rows: int, seed: int) -> Origin:
    """The origin of a bank with so many rows in a shard, and no shard yet."""
    first = torch.full((2_000, model.design.experiments[1], 1), model.design.start, dtype=torch.float64)
    early = model.design.draw_protocols(len(first), derive(seed, "protocols"))
    early = replace(early, times=first, after_dose=torch.zeros_like(first, dtype=torch.bool))
    prior = model.simulate_at(None, early, derive(seed, "quantiles"), solver=idle)
    levels = torch.linspace(0.0, 1.0, QUANTILES, dtype=torch.float64)
    return Origin(
        model.name,
        model.fingerprint(),
        model.design,
        seed,
        rows,
        enough(model, seed),
        0,
        {name: value.quantile(levels).tolist() for name, value in table(prior.parameters).items()},
        dict(model.units),
    )


def _again(model: Model, seed: int, folder: Path) -> Origin:
    """The origin of a bank whose own file is lost or damaged, from a shard that is whole."""
    for k in _there(folder):
        try:
            header = _stored(folder, k, files.peek)
        except FileError:
            continue
        origin = _origin(model, header["rows"] + header["failures"], seed)
        if header["bank"] == origin.identity:
            return origin
    raise BankError(
        f"{TOP} of the bank in {str(folder)!r} is damaged or lost, and its shards are not those of "
        f"{model.name!r} with seed {seed}; give the model and seed that they were made with, or another folder"
    )


def _refuse_other(folder: Path, origin: Origin, model: Model) -> None:
    """Raise BankError unless a bank has the model's behaviour and design."""
    found = difference(origin.fingerprint, model, origin.design)
    if found is not None:
        raise BankError(
            f"the bank in {str(folder)!r} was simulated for another model, {origin.model!r}: {found}; give "
            f"another folder, or the model that it was simulated for"
        )
    theirs, mine = (json.loads(json.dumps(design.to_json())) for design in (origin.design, model.design))
    for name, value in mine.items():
        if value != theirs[name]:
            raise BankError(
                f"the bank in {str(folder)!r} was simulated for another design: its {name} are {theirs[name]}, "
                f"those of {model.name!r} are {value}; give another folder, or the model with the bank's "
                f"design (open_bank(folder).origin.design)"
            )


def _there(folder: Path) -> list[int]:
    """The shards in `folder`, whole or not."""
    names = (re.fullmatch(r"shard-(\d{5,})\.ampost", path.name) for path in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def _sound(folder: Path, origin: Origin, there: list[int], show: bool | None) -> set[int]:
    """The shards in `folder` that are whole; one that is not is named."""
    found = set()
    for k in there:
        try:
            _read(folder, origin, k)
            found.add(k)
        except FileError as error:
            tell(f"the bank makes a shard again: {error}", show)
    return found


def _read(folder: Path, origin: Origin, k: int) -> Packed:
    """The tensors of shard k, without what failed, after its checksum was verified."""
    header, tensors = _stored(folder, k, files.load)
    if header["bank"] != origin.identity:
        raise FileError(f"{str(path_of(folder, k))!r} is a shard of another bank; delete it: {REMEDY}")
    return {name: value for name, value in tensors.items() if not name.startswith(FAILED)}


def _stored(folder: Path, k: int, read: Callable[[Path, str], Read]) -> Read:
    """What `read` reads of shard k."""
    try:
        return read(path_of(folder, k), "shard")
    except FileError as error:
        raise FileError(f"shard {k} of a bank: {error}; {REMEDY}") from error


@contextmanager
def _only(folder: Path) -> Iterator[None]:
    """The only process that builds in `folder`; a killed one does not count."""
    lock = FileLock(str(folder / ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BankError(
            f"another process builds the bank in {str(folder)!r}; wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
