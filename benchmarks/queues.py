"""What runs events: our workers, and the queues that one would use instead.

Each is filled from here and run in a process of its own: ``python -m benchmarks.queues
JOB``, which never ends by itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.due import due_events

from .candidates import SQLITE_PATIENCE
from .candidates import tune
from .databases import Missing
from .databases import rows
from .deliveries import SECRET
from .fill import fill
from .fill import tidy
from .servers import redis_url

WORKER, OUR_CELERY = "worker", 'DISPATCH="celery"'
CELERY, PROCRASTINATE = "Celery", "procrastinate"

#: Threads, or coroutines, of the one process that each has.
CONCURRENCY = 4
QUEUE = "benchmarks"
#: Messages that a thread of Celery's has in hand: its guide to optimizing says 64 or
#: 128 for many short tasks.
PREFETCH = 64
DONE = "procore_webhook_event WHERE status = 'done'"


@dataclass(frozen=True)
class Job:
    """Who runs how many events, and where."""

    who: str
    count: int
    #: Written when all of them are done.
    file: str
    url: str = ""
    #: Whether the subscriber writes a row.
    writes: bool = False
    #: Of the keys in Redis.
    prefix: str = ""

    @property
    def command(self) -> list[str]:
        job = json.dumps(dataclasses.asdict(self))
        return [sys.executable, "-m", "benchmarks.queues", job]


class Tally:
    """Counts runs; the file tells how long it was from the first one to the last."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._count = 0
        self._start = self._cpu_start = 0.0

    def __call__(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._start, self._cpu_start = time.perf_counter(), time.process_time()
            # Again at each run that should not have been.
            if self._count >= self._job.count:
                self._write()

    def _write(self) -> None:
        told = {
            "runs": self._count,
            "seconds": time.perf_counter() - self._start,
            "cpu": time.process_time() - self._cpu_start,
        }
        file = Path(self._job.file)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.replace(file)


class Runner:
    """One way to run events."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def fill(self) -> None:
        """Queue as many events as the job has, and nothing else."""
        raise NotImplementedError

    def work(self, tally: Callable[[], None]) -> None:
        """Run events until told to end."""
        raise NotImplementedError

    def done(self) -> int:
        """How many are done, each of them once."""
        raise NotImplementedError

    def clear(self) -> None:
        """Leave nothing on servers that others use."""


class OurWorker(Runner):
    dispatch = "worker"

    def fill(self) -> None:
        _make_written(self.job.url)
        fill(self.job.url, self.job.count, is_done=False)

    def work(self, tally: Callable[[], None]) -> None:
        arguments = ["worker", "--concurrency", str(CONCURRENCY)]
        app = self.app(tally)
        info = ScriptInfo(create_app=lambda: app)
        app.cli.main(["procore-webhooks", *arguments], "flask", obj=info)

    def done(self) -> int:
        if not self.job.writes:
            return rows(self.job.url, DONE)
        written = rows(self.job.url, "written")
        return written if rows(self.job.url, DONE) == written else -1

    def app(self, tally: Callable[[], None]) -> Flask:
        app = Flask("ours")
        app.config["PROCORE_WEBHOOK_SECRET"] = SECRET
        app.config["PROCORE_WEBHOOK_DISPATCH"] = self.dispatch
        make = _writing if self.job.writes else _doing_nothing
        webhooks = make(self.job.url, tally)
        app.config["PROCORE_WEBHOOK_DATABASE_URI"] = (
            None if self.job.writes else self.job.url
        )
        app.register_blueprint(webhooks)
        return app


class OurCelery(OurWorker):
    dispatch = "celery"

    def fill(self) -> None:
        from flask_procore_webhooks.dispatching.celery import publish

        self.clear()
        super().fill()
        (endpoint,) = endpoints(self.app(lambda: None)).values()
        due = due_events([endpoint.store], self.job.count)
        rows = [row_id for _, row_id in due]
        if publish(endpoint, rows, is_new=True) != self.job.count:
            raise Missing("not every message could be sent")

    def work(self, tally: Callable[[], None]) -> None:
        _work_for(self.app(tally).extensions["celery"])

    def app(self, tally: Callable[[], None]) -> Flask:
        app = super().app(tally)
        app.extensions["celery"] = _celery(self.job, _task_class(app))
        return app

    def done(self) -> int:
        return super().done() if not _waiting(self.job) else -1

    def clear(self) -> None:
        _clear_redis(self.job)


class PlainCelery(Runner):
    def fill(self) -> None:
        self.clear()
        celery, task = self._task(lambda: None)
        with celery.producer_pool.acquire(block=True) as producer:
            for _ in range(self.job.count):
                task.apply_async(producer=producer)

    def work(self, tally: Callable[[], None]) -> None:
        _work_for(self._task(tally)[0])

    def done(self) -> int:
        return self.job.count - _waiting(self.job)

    def clear(self) -> None:
        _clear_redis(self.job)

    def _task(self, tally: Callable[[], None]) -> tuple[Any, Any]:
        celery = _celery(self.job)

        def nothing() -> None:
            tally()

        return celery, celery.task(nothing, name="nothing", shared=False)


class Procrastinate(Runner):
    def fill(self) -> None:
        app, task = self._task(lambda: None)
        engine = sa.create_engine(self.job.url, poolclass=sa.NullPool)
        with app.open():
            if not sa.inspect(engine).has_table("procrastinate_jobs"):
                app.schema_manager.apply_schema()
            with engine.begin() as connection:
                connection.execute(sa.text("TRUNCATE procrastinate_jobs CASCADE"))
            task.batch_defer(*[{} for _ in range(self.job.count)])
        tidy(engine)

    def work(self, tally: Callable[[], None]) -> None:
        app, _ = self._task(tally)
        app.run_worker(queues=[QUEUE], concurrency=CONCURRENCY)

    def done(self) -> int:
        done = "procrastinate_jobs WHERE status = 'succeeded'"
        return rows(self.job.url, done)

    def _task(self, tally: Callable[[], None]) -> tuple[Any, Any]:
        import procrastinate

        address = sa.make_url(self.job.url).set(drivername="postgresql")
        conninfo = address.render_as_string(hide_password=False)
        app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=conninfo)
        )

        async def nothing() -> None:
            tally()

        return app, app.task(name="nothing", queue=QUEUE)(nothing)


RUNNERS: dict[str, type[Runner]] = {
    WORKER: OurWorker,
    OUR_CELERY: OurCelery,
    CELERY: PlainCelery,
    PROCRASTINATE: Procrastinate,
}


def runner(job: Job) -> Runner:
    return RUNNERS[job.who](job)


def _doing_nothing(url: str, tally: Callable[[], None]) -> ProcoreWebhooks:
    webhooks = ProcoreWebhooks()

    @webhooks.on("*", "*")
    def nothing(event: Event) -> None:
        tally()

    return webhooks


def _writing(url: str, tally: Callable[[], None]) -> ProcoreWebhooks:
    session = scoped_session(sessionmaker(_host_engine(url)))
    metadata = sa.MetaData()
    written = _written(metadata)
    webhooks = ProcoreWebhooks(metadata=metadata, session=session)

    @webhooks.on("*", "*")
    def write(event: Event) -> None:
        session.execute(sa.insert(written).values(event_id=event.id))
        tally()

    return webhooks


def _host_engine(url: str) -> sa.Engine:
    # A connection for the inbox and one for the session, in each thread.
    options: dict[str, Any] = {"pool_size": 2 * CONCURRENCY}
    if sa.make_url(url).get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_PATIENCE}
    engine = sa.create_engine(url, **options)
    tune(engine)
    return engine


def _written(metadata: sa.MetaData) -> sa.Table:
    return sa.Table("written", metadata, sa.Column("event_id", sa.String(80)))


def _make_written(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata = sa.MetaData()
    _written(metadata)
    metadata.drop_all(engine)
    metadata.create_all(engine)


def _task_class(app: Flask) -> Any:
    """Tasks that run in the app's context, as Flask's documentation shows."""
    from celery import Task

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *arguments: object, **options: object) -> object:
            with app.app_context():
                return self.run(*arguments, **options)

    return FlaskTask


def _celery(job: Job, task_cls: Any = None) -> Any:
    from celery import Celery

    celery = Celery(
        "benchmarks", broker=redis_url(), set_as_current=False, task_cls=task_cls
    )
    celery.conf.update(
        broker_transport_options={"global_keyprefix": job.prefix},
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=PREFETCH,
    )
    return celery


def _work_for(celery: Any) -> None:
    threads = ["--pool", "threads", "--concurrency", str(CONCURRENCY)]
    alone = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery.worker_main(["worker", "--loglevel", "WARNING", *threads, *alone])


def _redis() -> Any:
    try:
        import redis
    except ImportError:
        raise Missing("redis is not installed") from None
    client = redis.Redis.from_url(redis_url())
    try:
        client.ping()
    except redis.ConnectionError as error:
        raise Missing(f"no server (REDIS_URL names one): {error}") from None
    return client


def _waiting(job: Job) -> int:
    """Messages that are in the queue, or in hand and not acknowledged."""
    client = _redis()
    unacknowledged = client.hlen(f"{job.prefix}unacked")
    return int(client.llen(job.prefix + QUEUE) + unacknowledged)


def _clear_redis(job: Job) -> None:
    client = _redis()
    for key in client.scan_iter(f"{job.prefix}*"):
        client.delete(key)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    runner(job).work(Tally(job))


if __name__ == "__main__":
    main()
