"""Options of a session, from the program, the environment and the command line.

Each option can be given in all three places. The command line (``mpickpt run``) takes precedence over the environment
(``MPICKPT_DIR``, ``MPICKPT_EVERY``, …), and the environment over the arguments of `mpickpt.open`. Every error names the
place of the bad value. Nothing here does I/O.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpickpt.errors import UsageError

DEFAULT_INTERVAL = 600.0  # seconds between two cuts
DEFAULT_MTBF = 86_400.0  # seconds between two failures of the whole job, for interval="auto"
DEFAULT_MARGIN = 60.0  # seconds reserved for the end of a batch job, in addition to a drain
DEFAULT_KEEP = 2
DEFAULT_KEEP_ARCHIVING = 3  # a slot that is being copied is not overwritten meanwhile
DEFAULT_STALL_LIMIT = 60.0  # seconds without a completed storage call until an epoch is given up
DEFAULT_POOL_FRACTION = 0.25
DEFAULT_WAIT_LIMIT = 600.0  # seconds that a rank waits for the others
DEFAULT_POOL_BLOCKS = 16  # the default pool is never smaller, so that a small state does not stall needlessly

Restart = int | Literal["auto", "never"]
OnRebind = Literal["error", "warn", "ignore"]

_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1}
_BYTES |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
_BYTES |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)} | {"KB": 1000}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)


@dataclass(frozen=True)
class PoolSize:
    """Room for copies of blocks that the program changes before they are saved.

    Attributes
    ----------
    nbytes : int or None
        Absolute size of each rank's pool.
    fraction : float or None
        Size relative to the rank's arrays; 1 means all of them.
    """

    nbytes: int | None = None
    fraction: float | None = None

    def bytes_for(self, state_bytes: int, block_bytes: int, pinned_bytes: int = 0) -> int:
        """Return the size in bytes of the pool of a rank with `state_bytes` of arrays; at least one block.

        By default there is room for `pinned_bytes`, which are copied at each cut, and for a share of the others.
        """
        if self.nbytes is not None:
            return max(self.nbytes, block_bytes)
        if self.fraction is not None:
            return max(math.ceil(self.fraction * state_bytes), block_bytes)
        share = DEFAULT_POOL_FRACTION * max(0, state_bytes - pinned_bytes)
        return max(math.ceil(share), DEFAULT_POOL_BLOCKS * block_bytes) + pinned_bytes


@dataclass(frozen=True)
class Options:
    """The options of one session, checked and in plain units.

    Attributes
    ----------
    directory : pathlib.Path
        The checkpoint directory.
    every : int or None
        Steps between two cuts; None if cuts are scheduled by time.
    interval : float, "auto" or None
        Seconds between two cuts, or the best interval; None if cuts are scheduled by steps.
    keep : int
        Number of slots.
    restart : "auto", "never" or int
        The newest complete epoch, none, or the one of this number.
    pool : PoolSize
        Room for copies on each rank.
    direct : bool
        Whether to write past the page cache where the file system allows it.
    mtbf : float
        Mean time between failures of the job in seconds, for the best interval.
    signals : bool
        Whether SIGUSR1 requests a cut, and SIGTERM a cut and the end.
    predict : bool
        Whether to drain first what was written to first in the last interval.
    lazy : bool
        Whether a restart reads arrays while the program computes.
    margin : float
        Seconds reserved for the end of a batch job, in addition to a drain.
    record : bool
        Whether notes are taken for ``mpickpt report``.
    progress : bool
        Whether rank 0 shows the progress of the program on stderr.
    alone : bool
        Whether a process is alone if MPI says so, whatever its launcher says.
    on_rebind : "error", "warn" or "ignore"
        What a cut does about arrays and objects that the program no longer holds, unless it is set for each of them.
    archive_every : float or None
        Seconds between two archived epochs; None for none.
    keep_archives : int or None
        Number of archives that stay; None for all.
    archive_to : pathlib.Path or None
        Where archives are made; None for the checkpoint directory.
    term_limit : float
        Seconds after the first SIGTERM until the signal has its original effect; may be infinite.
    stall_limit : float
        Seconds without a completed storage call until an epoch that blocks the program is given up; may be infinite.
    """

    directory: Path
    every: int | None
    interval: float | Literal["auto"] | None
    keep: int = DEFAULT_KEEP
    restart: Restart = "auto"
    pool: PoolSize = PoolSize()
    direct: bool = True
    mtbf: float = DEFAULT_MTBF
    signals: bool = True
    predict: bool = True
    lazy: bool = False
    margin: float = DEFAULT_MARGIN
    record: bool = True
    progress: bool = False
    alone: bool = False
    on_rebind: OnRebind = "error"
    stall_limit: float = DEFAULT_STALL_LIMIT
    archive_every: float | None = None
    keep_archives: int | None = None
    archive_to: Path | None = None
    term_limit: float = math.inf


def parse_directory(value: object) -> Path:
    """Read a directory: a non-empty text or a path."""
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return Path(value)
    raise UsageError(f"{value!r} is not a directory name.")


def parse_count(value: object, least: int) -> int:
    """Read a whole number of at least `least`."""
    try:
        number = int(value) if isinstance(value, str) else value.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise UsageError(f"{value!r} is not a whole number of at least {least}.")
    return int(number)


def parse_interval(value: object) -> float | Literal["auto"]:
    """Read a time span as `parse_seconds`, or ``"auto"``."""
    return "auto" if value == "auto" else parse_seconds(value)


def parse_seconds(value: object) -> float:
    """Read a time span: seconds as a number, or a text such as ``"10min"``, ``"90s"``, ``"1h 30min"``.

    Returns
    -------
    float
        Seconds, more than 0.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _sum_of_quantities(value)
    if not (0 < seconds < math.inf):
        raise UsageError(f"{value!r} is not a time span; write seconds as a number, or '10min', '90s', '1h30min'.")
    return seconds


def parse_limit(value: object) -> float:
    """Read a time span as `parse_seconds`, or ``"never"``, which is infinite."""
    return math.inf if value == "never" else parse_seconds(value)


def _sum_of_quantities(text: str) -> float:
    at, total = 0, 0.0
    while at < len(text) and (found := _QUANTITY.match(text, at)):
        number, unit = found.groups()
        lone = not unit and found.span() == (0, len(text))
        total += float(number) * (1.0 if lone else _SECONDS.get(unit, math.nan))
        at = found.end()
    return total if text and at == len(text) else math.nan


def parse_pool(value: object) -> PoolSize:
    """Read the size of the pool: bytes as a number, ``"256MiB"``, or a share of the rank's arrays, ``"25%"``."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return PoolSize(nbytes=value)
    if isinstance(value, str):
        if value.strip().endswith("%"):
            found = _QUANTITY.fullmatch(value.strip()[:-1])
            if found and not found[2] and 0 < float(found[1]) <= 100:
                return PoolSize(fraction=float(found[1]) / 100)
        elif (found := _QUANTITY.fullmatch(value)) and found[2] in _BYTES:
            nbytes = math.floor(float(found[1]) * _BYTES[found[2]])
            if nbytes > 0:
                return PoolSize(nbytes=nbytes)
    raise UsageError(
        f"{value!r} is not a pool size; write bytes as a number, '256MiB', or a share of the arrays such as '25%'."
    )


def parse_restart(value: object) -> Restart:
    """Read what to restore: ``"auto"``, ``"never"`` or the number of an epoch."""
    if value == "auto":
        return "auto"
    if value == "never":
        return "never"
    try:
        return parse_count(value, 1)
    except UsageError:
        raise UsageError(f"{value!r} is not 'auto', 'never' or the number of an epoch.") from None


def parse_switch(value: object) -> bool:
    """Read yes or no."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "yes", "true", "on"):
        return True
    if text in ("0", "no", "false", "off"):
        return False
    raise UsageError(f"{value!r} is neither yes nor no.")


def parse_on_rebind(value: object) -> OnRebind:
    """Read what to do about arrays and objects that the program no longer holds."""
    match value:
        case "error" | "warn" | "ignore":
            return value
    raise UsageError(f"{value!r} is not 'error', 'warn' or 'ignore'.")


_PARSERS: dict[str, Callable[[object], Any]] = {
    "dir": parse_directory,
    "every": lambda value: parse_count(value, 1),
    "interval": parse_interval,
    "keep": lambda value: parse_count(value, 2),
    "restart": parse_restart,
    "pool": parse_pool,
    "direct": parse_switch,
    "mtbf": parse_seconds,
    "signals": parse_switch,
    "predict": parse_switch,
    "lazy": parse_switch,
    "margin": parse_seconds,
    "record": parse_switch,
    "progress": parse_switch,
    "alone": parse_switch,
    "on_rebind": parse_on_rebind,
    "archive_every": parse_seconds,
    "keep_archives": lambda value: parse_count(value, 1),
    "archive_to": parse_directory,
    "stall_limit": parse_limit,
    "term_limit": parse_limit,
}


@dataclass
class CommandLine:
    """The options of ``mpickpt run``; sessions of the same process read them here.

    Attributes
    ----------
    given : dict
        Option names without dashes, and their values as typed.
    """

    given: dict[str, str] = field(default_factory=dict)


command_line = CommandLine()


def resolve(
    code: Mapping[str, object],
    environment: Mapping[str, str],
    command_line: Mapping[str, str] | None = None,
    *,
    base: Path = Path(),
) -> Options:
    """Resolve the options of a session.

    ``every`` and ``interval`` are one option in two units: the place with precedence decides which of them counts.

    Parameters
    ----------
    code : mapping
        The arguments of `mpickpt.open`; None means "not given". ``dir`` is the directory.
    environment : mapping
        Usually `os.environ`.
    command_line : mapping, optional
        The options of the command line.
    base : pathlib.Path
        The base of a relative directory.

    Raises
    ------
    UsageError
        If a value is invalid; the message names its source.
    """
    places: list[tuple[Callable[[str], str], Mapping[str, object]]] = [
        (lambda name: f"Option --{name.replace('_', '-')}", command_line or {}),
        (lambda name: f"Environment variable MPICKPT_{name.upper()}", _from_environment(environment)),
        (lambda name: f"Argument {'directory' if name == 'dir' else name}= of mpickpt.open()", code),
    ]
    chosen: dict[str, Any] = {}
    for title, values in places:
        schedules = [name for name in ("every", "interval") if values.get(name) is not None]
        if len(schedules) == 2:
            raise UsageError(f"{title('every')} and {title('interval')} contradict each other: give one of them.")
        has_schedule = "every" in chosen or "interval" in chosen
        for name, parse in _PARSERS.items():
            value = values.get(name)
            if value is None or name in chosen or (name in schedules and has_schedule):
                continue
            try:
                chosen[name] = parse(value)
            except UsageError as error:
                raise UsageError(f"{title(name)}: {error}") from None
    if "every" not in chosen and "interval" not in chosen:
        chosen["interval"] = DEFAULT_INTERVAL
    if "dir" not in chosen:
        raise UsageError("No checkpoint directory is given, by mpickpt.open(), --dir or MPICKPT_DIR.")
    directory = base / chosen.pop("dir")
    if "archive_to" in chosen:
        chosen["archive_to"] = base / chosen["archive_to"]
    if "archive_every" in chosen:
        chosen.setdefault("keep", DEFAULT_KEEP_ARCHIVING)
    return Options(directory, chosen.pop("every", None), chosen.pop("interval", None), **chosen)


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """Collect the variables that are set; an empty one counts as not set."""
    found = {name: environment.get(f"MPICKPT_{name.upper()}") for name in _PARSERS}
    return {name: value for name, value in found.items() if value}


def wait_limit() -> float:
    """Return the seconds to wait for other ranks, from MPICKPT_WAIT_LIMIT."""
    text = os.environ.get("MPICKPT_WAIT_LIMIT") or str(DEFAULT_WAIT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UsageError(f"Environment variable MPICKPT_WAIT_LIMIT: {text!r} is not a number of seconds.")
    return limit
