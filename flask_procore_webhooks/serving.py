"""Serving: call a function when the process begins to serve requests.

The app must be loaded by then, because a thread that ran an event earlier would not
know every subscriber. WSGI has no such signal, so each server has its own sign here. A
server without one is covered by the first request, or by a call in its start hook.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from multiprocessing import parent_process
from types import FrameType
from typing import Any

import click
from flask.cli import ScriptInfo

#: The function of a server that runs after it has loaded the app, by its module, and
#: the attribute of its ``self`` that is true from then on, if there is one.
LOOPS = {
    ("waitress.server", "run"): "",
    ("werkzeug.serving", "serve_forever"): "",
    ("hypercorn.asyncio.run", "_run"): "",
    ("hypercorn.trio.run", "_run"): "",
    ("granian.server.mp", "_spawn_wsgi_worker"): "",
    ("granian.server.mt", "_spawn_wsgi_worker"): "",
    ("cheroot.server", "serve"): "ready",
    ("uvicorn.server", "run"): "started",
}
#: Programs that import an app and serve no requests.
TOOLS = frozenset({"alembic", "celery", "huey_consumer", "pytest", "py.test", "rq"})
#: Seconds between two looks for a sign, and after which no sign is expected any more.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
PATIENCE = 600.0


def call_when_serving(call: Callable[[], object]) -> None:
    """Call ``call`` once in each process that begins to serve the loaded app.

    Nothing is called in commands, except ``flask run``, in tests and in processes that
    only import the app.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None:
        _watch_uwsgi(uwsgi, call)
    elif arbiter := _frame_in("gunicorn.arbiter"):
        _watch_gunicorn(arbiter, call)
    elif _may_serve() and not is_serving():
        _watch(is_serving, call)


def is_serving() -> bool:
    """Whether a thread of this process is in the loop of a known server."""
    frames: dict[int, FrameType] = getattr(sys, "_current_frames", dict)()
    return any(_serves(frame) for frame in frames.values())


def _serves(frame: FrameType | None) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "importlib._bootstrap":
            return False  # an import may be that of the app
        attribute = LOOPS.get((module, frame.f_code.co_name))
        if attribute is not None:
            loop = frame.f_locals.get("self")
            return not attribute or bool(getattr(loop, attribute, False))
        frame = frame.f_back
    return False


def _may_serve() -> bool:
    """Whether this process may begin to serve later."""
    command = click.get_current_context(silent=True)
    if command is not None and command.find_object(ScriptInfo) is not None:
        return command.info_name == "run"
    if "pytest" in sys.modules or os.path.basename(sys.argv[0]) in TOOLS:
        return False
    # An interpreter without a script serves nothing; a server's child has none.
    is_script = hasattr(sys.modules.get("__main__"), "__file__")
    return is_script or parent_process() is not None


def _watch_gunicorn(arbiter: FrameType, call: Callable[[], object]) -> None:
    """Call when the worker is booted: after the import of the app, before its loop."""
    worker = arbiter.f_locals.get("worker")
    if worker is None:
        # With preload_app, the workers are forked from here later.
        os.register_at_fork(after_in_child=lambda: _after_fork(call))
    elif not worker.booted:
        _watch(lambda: worker.booted, call)


def _after_fork(call: Callable[[], object]) -> None:
    arbiter = _frame_in("gunicorn.arbiter")
    worker: Any = arbiter.f_locals.get("worker") if arbiter else None
    # A gevent worker replaces threads later, and a thread from before stops its own.
    if worker is not None and "gevent" not in type(worker).__module__:
        _watch(lambda: worker.booted, call)


def _watch_uwsgi(uwsgi: Any, call: Callable[[], object]) -> None:
    """Call after the fork of a worker; with ``lazy-apps``, when it has the app."""
    if uwsgi.worker_id():
        _watch(lambda: _has_app(uwsgi), call)
        return
    earlier = getattr(uwsgi, "post_fork_hook", None)

    def after_fork() -> None:
        if earlier is not None:
            earlier()
        if uwsgi.worker_id():
            call()

    try:
        decorators: Any = import_module("uwsgidecorators")
    except Exception:  # it is not installed, or there is no master process
        uwsgi.post_fork_hook = after_fork
    else:
        # It has a hook of its own, which calls every registered function.
        earlier = None
        decorators.postfork(after_fork)


def _has_app(uwsgi: Any) -> bool:
    mine = [each for each in uwsgi.workers() if each["id"] == uwsgi.worker_id()]
    return any(each["apps"] for each in mine)


def _watch(sign: Callable[[], bool], call: Callable[[], object]) -> None:
    """Call ``call`` in a thread when ``sign()`` is true."""

    def wait() -> None:
        pause, end = SHORTEST_PAUSE, time.monotonic() + PATIENCE
        while not sign():
            if time.monotonic() > end:
                return
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        call()

    # Without threads, the first request finds out and logs it.
    with suppress(RuntimeError):
        threading.Thread(
            target=wait, name="procore webhooks start", daemon=True
        ).start()


def _frame_in(module: str) -> FrameType | None:
    """The innermost calling frame of that module."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == module:
            return frame
    return None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
