"""One file format: named tensors (safetensors) and a JSON header, atomic, versioned, checksummed.

Nothing is executed on loading: no pickle. The checksum covers the header and every tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ampost.errors import FileError, FormatError

FORMAT_VERSION = 4
LATER = {"estimator": 5, "modes": 5, "checkpoint": 5}  # kinds of files that changed since


def version_of(kind: str) -> int:
    """The format version in which files of a kind are written and read."""
    return LATER.get(kind, FORMAT_VERSION)


def save(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` and a JSON `header` to `path`: to a temporary file first, then renamed.

    Raises:
        FileError: the file cannot be written: a full disk, say, or a folder that is not there.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = json.dumps(header)  # in its order: that of channels and conditions means something
    metadata = {
        "format": "ampost",
        "version": str(version_of(kind)),
        "kind": kind,
        "header": body,
        "checksum": _checksum(body, contiguous),
    }
    try:
        with replacing(path) as temporary:
            save_file(contiguous, str(temporary), metadata=metadata)
            _put_in_order(temporary)
    except (SafetensorError, OSError) as error:
        folder = Path(path).parent
        need = sum(t.numel() * t.element_size() for t in contiguous.values()) + len(body)
        free = shutil.disk_usage(folder).free
        raise FileError(
            f"{str(path)!r} cannot be written ({error}); it takes {need / 1e6:.3g} MB, and the folder "
            f"{str(folder)!r} has {free / 1e6:.3g} MB free: make room or give another folder, and call again; "
            f"files that are finished stay"
        ) from error


def load(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save` wrote.

    Raises:
        FileError: no such file, not an ampost file, another kind, or damaged.
        FormatError: it has another format version.
    """
    metadata, tensors = _read(Path(path), kind, True)
    if metadata["checksum"] != _checksum(metadata["header"], tensors):
        raise FileError(f"{str(path)!r} is damaged: its checksum does not match; make it again")
    header: dict[str, Any] = json.loads(metadata["header"])
    return header, tensors


def peek(path: str | Path, kind: str) -> dict[str, Any]:
    """The header of what `save` wrote, without the tensors and so without the checksum."""
    header: dict[str, Any] = json.loads(_read(Path(path), kind, False)[0]["header"])
    return header


def _read(path: Path, kind: str, whole: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata of a file of this kind and format and, for the `whole`, its tensors."""
    if not path.is_file():
        raise FileError(f"there is no file {str(path)!r}; give the path of a saved {kind}")
    try:
        with safe_open(str(path), framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()} if whole else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"{str(path)!r} cannot be read as an ampost file ({error}); it is damaged or another "
            f"kind of file: make it again"
        ) from error
    if metadata.get("format") != "ampost":
        raise FileError(f"{str(path)!r} is a safetensors file, but ampost did not write it")
    missing = {"version", "kind", "header", "checksum"} - set(metadata)
    if missing or not metadata["version"].isdigit():
        raise FileError(f"{str(path)!r} is damaged: its header lacks a version or more; make it again")
    if metadata["kind"] != kind:
        raise FileError(f"{str(path)!r} is of kind {metadata['kind']!r}, expected {kind!r}: give another file")
    version, known = int(metadata["version"]), version_of(kind)
    if version > known:
        raise FormatError(
            f"{str(path)!r} has format version {version}; this ampost reads up to {known}: upgrade ampost"
        )
    if version < known:
        raise FormatError(
            f"{str(path)!r} has format version {version}, of an earlier ampost; this one reads {known}: "
            f"make the file again"
        )
    return metadata, tensors


def _put_in_order(path: Path) -> None:
    """Sort the metadata of a file, which safetensors writes at random: equal content is equal bytes."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileError(f"the folder {str(path.parent)!r} does not exist; create it first")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
