"""Records of successful rehearsals, so that not every program has to repeat one.

A rehearsal shows that the reaper's interpreter can import the HTTP stack, and that it can then connect to the
service with its client's proxies and certificates. It takes most of the time of a short lease. It is skipped
if all of these are true:

1. The client itself connects with the same settings: it has no `http_client=`. The same must be true of every
   other client of the account in this process, because they share the reaper. A client sends no start request
   before the service has given it a token and the list of instances, so the network, the proxy, and the
   service work at that time.
2. A reaper has connected with these settings within a day. So differences between a client and its reaper,
   for example in their environment variables or HTTP libraries, do not prevent the connection.
3. Nothing that this reaper read from the disk has changed since. The record lists the files of all modules,
   the folders of the packages, the interpreter and its shared libraries, and the certificates, each with its
   inode, size, and times. It also lists the files on the import path that are named like one of the modules,
   or like one that was not found, because a new one could be imported instead.

Anything else leads to a rehearsal: no state directory, a record that is not understood, or a system on which
the shared libraries of a process cannot be listed. A rehearsal that fails invalidates the record. A record is
a file in the user's state directory, subject to the rules of `StateFolder`, so whoever could forge one could
also replace the reaper itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from types import ModuleType

from .._environment import certificates_in
from .._state_directory import StateFolder
from .records import Record

# Seconds after which a rehearsal is repeated.
_MAX_AGE = 24 * 3600.0

# Bytes. The usual size is a tenth of this.
_MAX_SIZE = 1 << 20

# Files that changed in this many nanoseconds before a rehearsal may have been read before the change: the
# file system's clock is not exact.
_CLOCK_TOLERANCE = 1_000_000_000

_FORMAT = "cortecs_async rehearsal 1"

# The variables that change what an interpreter loads: its libraries, and the spelling of paths on the disk.
_VARIABLES = ("LD_LIBRARY_PATH", "LANG", "LC_ALL")

# The mapped files of this process: the interpreter and its shared libraries. Linux only.
_MAPS = "/proc/self/maps"


def identity_of(settings: Record, import_path: list[str]) -> str:
    """Return a digest of everything that decides what a rehearsal with these settings does.

    It contains no secrets. A proxy's password is left out: the client itself shows that it works.
    """
    environment = settings["environment"]
    proxies = {scheme: _without_user(url) for scheme, (_, url) in environment["proxies"].items()}
    variables = [os.environ.get(name) for name in _VARIABLES]
    interpreter = [sys.executable, sys.version, import_path, variables]
    facts = [_FORMAT, __file__, *interpreter, settings["api_base_url"], {**environment, "proxies": proxies}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _without_user(url: str) -> list[str]:
    scheme, _, rest = url.partition("://")
    return [scheme, rest.rpartition("@")[2]]


def is_recorded(folder: Path, identity: str) -> bool:
    """Return whether the rehearsal with this identity was successful, and nothing has changed since."""
    try:
        with StateFolder(folder) as opened, open(opened.open(_name(identity), os.O_RDONLY), "rb") as file:
            header, _, body = file.read(_MAX_SIZE).partition(b"\n")
        if header != _header(identity, body):
            return False
        record = json.loads(body)
        if not 0.0 <= time.time() - record["since"] < _MAX_AGE:
            return False
        seen: Record = record["seen"]
        return seen == _snapshot(record["paths"], record["folders"], record["names"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_record(folder: Path, identity: str, used: Record, since: float) -> None:
    """Record a successful rehearsal by a process that began at a Unix time, and the result of `used_files`.

    Nothing is recorded if it cannot be written, or if a file is gone or may have changed since it was used.
    """
    seen = _snapshot(**used)
    limit = int(since * 1e9) - _CLOCK_TOLERANCE
    if all(each is not None and each[-1] < limit for each in seen["paths"]):
        body = json.dumps({"since": since, **used, "seen": seen}).encode()
        _write(folder, identity, _header(identity, body) + b"\n" + body)


def invalidate_record(folder: Path, identity: str) -> None:
    """Record that the rehearsal failed. This also works on a full disk."""
    with contextlib.suppress(OSError), StateFolder(folder) as opened:
        os.close(opened.open(_name(identity), os.O_WRONLY | os.O_TRUNC))


def _write(folder: Path, identity: str, data: bytes) -> None:
    name = _name(identity)
    draft = f"{name}.new"
    with contextlib.suppress(OSError), StateFolder(folder, create=True) as opened:
        with contextlib.suppress(FileNotFoundError):
            os.close(opened.open(name, os.O_RDONLY))  # raises if it is not ours to replace
        # If two processes write at the same time, the header does not match, and the record is ignored.
        with open(opened.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(data)
        opened.rename(draft, name)


def used_files(settings: Record, missing: Iterable[str]) -> Record | None:
    """Return the files on which the success of this process's rehearsal with these settings depended.

    `missing` are the modules that it did not find. The result is None if the files cannot be determined.
    """
    try:
        with open(_MAPS, "rb") as file:
            fields = [line.rstrip(b"\n").split(maxsplit=5) for line in file]
    except OSError:
        return None
    paths = {os.fsdecode(each[5]) for each in fields if len(each) > 5 and each[5].startswith(b"/")}
    if any(path.endswith(" (deleted)") for path in paths):
        return None
    modules = {name: each for name, each in sys.modules.copy().items() if isinstance(each, ModuleType)}
    for module in modules.values():
        paths.update(getattr(module, "__path__", ()))
        if (path := getattr(module, "__file__", None)) is not None:
            paths.add(path)
    # The interpreter's own path too: it may be a link that will point to another one.
    paths.update(_certificates(settings), filter(os.path.isfile, sys.path), [sys.executable])
    names = sorted({name for name in (*modules, *missing) if "." not in name})
    return {"paths": sorted(paths), "folders": [*sys.path], "names": names}


def _certificates(settings: Record) -> Iterator[str]:
    environment = settings["environment"]
    if environment["cafile"]:
        yield environment["cafile"]
    for folder in filter(None, (environment["capath"] or "").split(os.pathsep)):
        yield folder
        # Overwriting a file does not change its folder.
        yield from filter(os.path.isfile, certificates_in(folder))
    if (certifi := sys.modules.get("certifi")) is not None:
        yield certifi.where()


def _snapshot(paths: Iterable[str], folders: Iterable[str], names: Iterable[str]) -> Record:
    """Return the state of some files, and the names in some folders that begin with the name of a module."""
    modules = frozenset(names)
    return {
        "paths": [_state_of(path) for path in paths],
        "folders": [_names_in(folder, modules) for folder in folders],
    }


def _names_in(folder: str, modules: Container[str]) -> list[str] | None:
    try:
        return sorted(name for name in os.listdir(folder) if name.partition(".")[0] in modules)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _state_of(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _name(identity: str) -> str:
    # One of 16 names, so that the files never take up much space. A collision only causes a rehearsal.
    return f"rehearsal-{identity[0]}"


def _header(identity: str, body: bytes) -> bytes:
    return f"{_FORMAT} {hashlib.sha256(identity.encode() + body).hexdigest()}".encode()
