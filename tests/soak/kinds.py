"""The kinds of runs, by name, and the databases for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.outages import relay_to
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL

from .connections import Connections
from .disturbances import connection_run
from .disturbances import crash_run
from .disturbances import outage_run
from .disturbances import silent_run
from .filled import filled
from .modes import is_installed
from .modes import MODES
from .outages import Breakable
from .outages import Locked
from .outages import private_server
from .outages import Server
from .runs import Result
from .runs import Setup

DATABASES = ("sqlite", "postgresql", "mariadb")
SERVICES = {"postgresql": POSTGRESQL, "mariadb": MARIADB}
#: Modes in which processes are killed; the other kinds of runs have the mode ``both``.
KILLED = ("background", "preload", "uwsgi", "worker")
#: The same modes: everything is killed, and no request follows.
SILENT = tuple(f"silent-{mode}" for mode in KILLED)
#: Kinds of runs that stop the database, or end its connections, instead of processes.
ENDED = ("outage", "connections", "full")
KINDS = (*KILLED, *SILENT, *ENDED)
LONGEST_OUTAGE = 6.0


@dataclass(frozen=True)
class Options:
    folder: Path
    seed: int
    seconds: float
    events: int
    kills: int
    ends: int
    outages: int


def run(database: str, kind: str, options: Options) -> Result | None:
    """One run, with a database of its own; ``None``, and a line that says why, where it
    is not possible."""
    name = f"{database} {kind}"
    mode = MODES[kind.removeprefix("silent-")] if kind not in ENDED else MODES["both"]
    if not is_installed(mode):
        print(f"{name}: not run, uWSGI is not installed", flush=True)
        return None
    folder = options.folder / name.replace(" ", "_")
    with _database(database, kind, folder) as place:
        if place is None:
            print(f"{name}: not run", flush=True)
            return None
        urls = place.url, place.direct_url
        setup = Setup(name, mode, *urls, folder, options.seed, options.seconds)
        return _run(kind, setup, place, options)


def _run(kind: str, setup: Setup, place: Breakable, options: Options) -> Result:
    few = options.events // 4
    if kind in KILLED:
        return crash_run(setup, events=options.events, kills=options.kills)
    if kind in SILENT:
        return silent_run(setup, events=max(few, 50))
    if kind == "connections":
        connections = Connections(place.direct_url)
        # Without a private server, the other databases of the server stay writable.
        switches = connections.is_postgresql or isinstance(place, Server)
        return connection_run(
            setup, connections, events=few, ends=options.ends, switches=switches
        )
    return outage_run(
        setup, place, events=few, outages=options.outages, longest=LONGEST_OUTAGE
    )


@contextmanager
def _database(database: str, kind: str, folder: Path) -> Iterator[Breakable | None]:
    folder.mkdir(parents=True)
    if kind == "full":
        with filled(database, folder) as place:
            if place is None:
                print("it needs the right to mount, and a private server")
            yield place
    elif kind == "connections" and database == "sqlite":
        print("a file has no connections that a server could end")
        yield None
    elif database == "sqlite":
        yield Locked(f"sqlite:///{folder / 'soak.db'}")
    else:
        with private_server(database) as server, ExitStack() as stack:
            yield server or _shared(database, stack)


def _shared(database: str, stack: ExitStack) -> Breakable | None:
    """A new database on the running server; a proxy in front of it makes outages."""
    print(f"{database}: no server is installed that could be stopped", flush=True)
    try:
        url = stack.enter_context(own_database(*SERVICES[database]))
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        print(f"{database}: {error}", flush=True)
        return None
    return stack.enter_context(relay_to(url))
