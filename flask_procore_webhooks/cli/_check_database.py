"""The part of ``check`` that examines engines, pools and SQLite files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import AssertionPool
from sqlalchemy import QueuePool
from sqlalchemy import StaticPool
from sqlalchemy.pool import SingletonThreadPool

from ..endpoint import at_least_once_warnings
from ..endpoint import AUTOCOMMIT
from ..endpoint import Endpoint
from ..endpoint import session_engine
from ..storage.engines import commits_by_itself
from ..storage.engines import is_autocommit
from ..storage.engines import is_in_memory
from ..storage.engines import sqlite_path
from ..storage.servers import LARGE_DIFFERENCE
from ._findings import Finding
from ._findings import warning
from ._processes import alive
from ._processes import processes

#: Options of drivers that bound the wait for a silent server.
SOCKET_TIMEOUTS = {
    "psycopg": "tcp_user_timeout (milliseconds)",
    "psycopg2": "tcp_user_timeout (milliseconds)",
    "pymysql": "read_timeout (seconds)",
}
#: Variables that platforms of several instances set.
PLATFORMS = {
    "K_SERVICE": "Cloud Run",
    "CLOUD_RUN_JOB": "Cloud Run",
    "FUNCTION_TARGET": "Cloud Functions",
    "GAE_INSTANCE": "App Engine",
    "AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda",
    "ECS_CONTAINER_METADATA_URI_V4": "Amazon ECS",
    "FUNCTIONS_WORKER_RUNTIME": "Azure Functions",
    "WEBSITE_INSTANCE_ID": "Azure App Service",
    "VERCEL": "Vercel",
    "DYNO": "Heroku",
    "FLY_APP_NAME": "Fly.io",
    "RENDER": "Render",
    "RAILWAY_ENVIRONMENT": "Railway",
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
}
#: Those that suspend or end a process after its answer.
SERVERLESS = (
    "K_SERVICE",
    "FUNCTION_TARGET",
    "GAE_INSTANCE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "FUNCTIONS_WORKER_RUNTIME",
    "VERCEL",
)
NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
}
#: Bytes below which a disk is nearly full.
LITTLE_SPACE = 50 * 1024 * 1024


def database(endpoint: Endpoint) -> Iterator[Finding]:
    """What weakens the promise or slows deliveries."""
    for text in at_least_once_warnings(endpoint):
        yield warning(text)
    engine = session_engine(endpoint)
    # Without a connection, at_least_once_warnings() knows the engine's options only.
    if engine is not None and not is_autocommit(engine) and commits_by_itself(engine):
        yield warning(AUTOCOMMIT)
    url = endpoint.store.database.url
    if endpoint.store.session is not None and _lacks_timeout(endpoint):
        yield warning(
            "The app's database connections have no timeout for a silent server: after"
            " a network failure, a delivery may hang until the system drops one. Set"
            f" {SOCKET_TIMEOUTS[url.get_driver_name()]} in connect_args."
        )
    if is_in_memory(url):
        yield warning(
            "The inbox is in memory: every event is lost when the process ends."
        )
    else:
        yield from _pool(endpoint)
    yield from _clock(endpoint)


def file(endpoint: Endpoint) -> Iterator[Finding]:
    """The file of SQLite: its place, mode, and the space that is left."""
    path = sqlite_path(endpoint.store.database.url)
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    for variable, name in PLATFORMS.items():
        if variable in os.environ:
            yield warning(
                f"The inbox is a SQLite file, which is for one machine, and this is"
                f" {name}: each instance would have a file of its own, and run and lose"
                " events by itself. Use a database server."
            )
            break
    if kind := _network_file_system(folder):
        yield warning(
            f"The inbox is a SQLite file on a network file system ({kind}), where locks"
            " are not reliable. Use a local disk or a database server."
        )
    if endpoint.store.session is None:
        yield from _modes(path, folder)
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < max(LITTLE_SPACE, 10 * endpoint.settings.max_bytes):
            yield warning(f"The disk of {folder} has {free // 2**20} MiB left.")


def platform(endpoint: Endpoint) -> Iterator[Finding]:
    """Platforms on which a thread does not go on after an answer."""
    found = [name for name in SERVERLESS if name in os.environ]
    if found and endpoint.dispatch == "background":
        yield warning(
            f"{PLATFORMS[found[0]]} suspends a process and its background thread after"
            ' an answer. Set DISPATCH to "worker" or "celery" and run workers'
            ' elsewhere, or to "inline".'
        )


def _modes(path: str, folder: str) -> Iterator[Finding]:
    if os.name == "nt":
        return
    open_files = [
        f"{name} ({mode:04o})"
        for name in (path, f"{path}-wal", f"{path}-shm")
        if os.path.exists(name) and (mode := os.stat(name).st_mode & 0o777) & 0o077
    ]
    if open_files:
        yield warning(
            "Other users of this machine have access to the inbox, which holds what was"
            f" sent: chmod 600 {', '.join(open_files)}."
        )
    mode = os.stat(folder).st_mode & 0o7777
    if mode & 0o022 and not mode & 0o1000:
        yield warning(
            f"Other users of this machine can replace files in {folder} (mode"
            f" {mode:04o}): chmod 700."
        )


def _network_file_system(folder: str) -> str | None:
    """The kind of the file system, if it is a network's; known on Linux only."""
    kinds = {}
    with suppress(OSError), open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, place, kind, *_ = line.split(" ")
            kinds[place.replace("\\040", " ")] = kind
    folder = os.path.realpath(folder)
    places = [
        p for p in kinds if os.path.join(folder, "").startswith(os.path.join(p, ""))
    ]
    kind = kinds[max(places, key=len)] if places else ""
    return kind if kind in NETWORK_FILE_SYSTEMS or "sshfs" in kind else None


def _lacks_timeout(endpoint: Endpoint) -> bool:
    """Whether the connections of the host's engine can wait for ever."""
    driver = endpoint.store.database.url.get_driver_name()
    if driver not in SOCKET_TIMEOUTS:
        return False
    with endpoint.store.connection() as connection:
        raw: Any = connection.connection.dbapi_connection
        if driver == "pymysql":
            return raw._read_timeout is None
        if driver == "psycopg2":
            parameters = raw.info.dsn_parameters
        else:
            parameters = raw.info.get_parameters()
    is_local = str(parameters.get("host", "/")).startswith("/")
    return not is_local and not parameters.get("tcp_user_timeout", "").strip("0")


def _pool(endpoint: Endpoint) -> Iterator[Finding]:
    """Whether each thread that runs events gets a connection."""
    pool: Any = endpoint.store.database.engine.pool
    if endpoint.dispatch == "inline":
        return
    if isinstance(pool, (StaticPool, SingletonThreadPool, AssertionPool)):
        yield warning(
            f"The app's engine has a {type(pool).__name__}: threads share a connection"
            " and with it a transaction. Use the default pool."
        )
    elif endpoint.dispatch == "background":
        yield from _small_pool(endpoint, endpoint.settings.threads, "THREADS")


def worker_pools(endpoint: Endpoint) -> Iterator[Finding]:
    """Whether each thread of the workers that run now gets a connection."""
    found = [each for each in alive(processes(endpoint)) if each["mode"] == "worker"]
    threads = max((each["threads"] or 0 for each in found), default=0)
    yield from _small_pool(endpoint, threads, "--concurrency")


def _small_pool(endpoint: Endpoint, threads: int, name: str) -> Iterator[Finding]:
    pool: Any = endpoint.store.database.engine.pool
    if not isinstance(pool, QueuePool) or pool._max_overflow < 0:
        return
    most = pool.size() + pool._max_overflow
    # One to renew leases, and one for a delivery or a poll.
    if threads and most < threads + 2:
        yield warning(
            f"The app's pool has {most} connections, and {threads} threads that run"
            f" events, the renewal of leases and a delivery need {threads + 2}: raise"
            f" pool_size or lower {name}."
        )


def _clock(endpoint: Endpoint) -> Iterator[Finding]:
    """Whether this host's clock differs from the database server's."""
    # Compared with the server's by the first statement.
    seconds = endpoint.store.clock.offset.total_seconds()
    if abs(seconds) > min(endpoint.settings.lease, LARGE_DIFFERENCE):
        side = "behind" if seconds > 0 else "ahead of"
        yield warning(
            f"The clock of this host is {abs(seconds):.0f} s {side} the clock of the"
            " database server. Times are corrected by that, also for the timestamps of"
            " signatures: synchronise both clocks (NTP)."
        )
