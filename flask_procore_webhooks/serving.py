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
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from multiprocessing import parent_process
from types import FrameType
from typing import Any
from typing import TypeVar

import click
from flask.cli import ScriptInfo

from .runtime import start_thread

T = TypeVar("T")
#: Whether the process serves now.
Sign = Callable[[], bool]

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
TOOLS = frozenset(
    {"alembic", "celery", "huey_consumer", "pytest", "py.test", "rq", "unittest"}
)
#: Seconds between two looks for a sign, and after which no sign is expected any more.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
PATIENCE = 600.0


class Call:
    """``work(owner)``, as long as the owner is referenced elsewhere."""

    def __init__(self, owner: T, work: Callable[[T], object]) -> None:
        self._owner = weakref.ref(owner)
        self._work = work

    def __call__(self) -> None:
        if (owner := self._owner()) is not None:
            self._work(owner)

    def is_needed(self) -> bool:
        return self._owner() is not None


def call_when_serving(owner: T, work: Callable[[T], object]) -> None:
    """Call ``work(owner)`` once in each process that begins to serve the loaded app.

    The owner is referenced weakly. Nothing is called in commands, except ``flask run``,
    in tests and in processes that only import the app.
    """
    call, uwsgi = Call(owner, work), sys.modules.get("uwsgi")
    if uwsgi is not None:
        _watch_uwsgi(uwsgi, call)
    elif arbiter := _frame_in("gunicorn.arbiter"):
        _watch_gunicorn(arbiter, call)
    elif _may_serve() and not is_serving():
        _watch(is_serving, call)


def flask_command() -> click.Context | None:
    """The context of the ``flask`` command that this process runs, if it runs one."""
    context = click.get_current_context(silent=True)
    is_flask = context is not None and context.find_object(ScriptInfo) is not None
    return context if is_flask else None


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
    if command := flask_command():
        return command.info_name == "run"
    main = sys.modules.get("__main__")
    # With "python -m", the name of the module.
    spec = getattr(main, "__spec__", None)
    name = spec.name.partition(".")[0] if spec else os.path.basename(sys.argv[0])
    if "pytest" in sys.modules or name in TOOLS:
        return False
    # An interpreter without a script serves nothing; a server's child has none.
    return hasattr(main, "__file__") or parent_process() is not None


def _watch_gunicorn(arbiter: FrameType, call: Call) -> None:
    """Call when the worker is booted: after the import of the app, before its loop."""
    worker = arbiter.f_locals.get("worker")
    if worker is None:
        # With preload_app, the workers are forked from here later.
        os.register_at_fork(after_in_child=lambda: _after_fork(call))
    elif not worker.booted:
        _watch(lambda: worker.booted, call)


def _after_fork(call: Call) -> None:
    arbiter = _frame_in("gunicorn.arbiter")
    worker: Any = arbiter.f_locals.get("worker") if arbiter else None
    # A process that a request forks has a booted worker. A gevent worker replaces
    # threads later, and a thread from before stops its own.
    is_new = worker is not None and not worker.booted
    if is_new and "gevent" not in type(worker).__module__:
        _watch(lambda: worker.booted, call)


def _watch_uwsgi(uwsgi: Any, call: Call) -> None:
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


class _Watcher:
    """Waits for the signs of this process in one thread, however many apps it has."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._calls: list[tuple[Sign, Call]] = []
        self._lock = threading.Lock()

    def add(self, sign: Sign, call: Call) -> None:
        with self._lock:
            self._calls.append((sign, call))
            if len(self._calls) == 1:
                # Without threads, the first request finds out and logs it.
                with suppress(RuntimeError):
                    start_thread("procore webhooks start", self._run)

    def _run(self) -> None:
        pause, end = SHORTEST_PAUSE, time.monotonic() + PATIENCE
        while self._look():
            if time.monotonic() > end:
                with self._lock:
                    self._calls.clear()
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _look(self) -> bool:
        """Make the calls whose sign is there; return whether others are left."""
        with self._lock:
            due = [each for each in self._calls if each[1].is_needed() and each[0]()]
            self._calls = [
                each for each in self._calls if each not in due and each[1].is_needed()
            ]
        for _, call in due:
            call()
        return bool(self._calls)


_watcher = _Watcher()


def _watch(sign: Sign, call: Call) -> None:
    """Call ``call`` in a thread when ``sign()`` is true."""
    global _watcher
    if _watcher.pid != os.getpid():
        _watcher = _Watcher()
    _watcher.add(sign, call)


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
