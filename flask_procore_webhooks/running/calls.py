"""Call: one call of one subscriber, with its app context, session and commit.

What the subscriber did is the outcome. Later errors of the host are logged.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Awaitable
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from contextvars import copy_context
from itertools import filterfalse
from math import inf
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..event import Event
from ..inbox.completion import finish_in_session
from ..inbox.cut import cut
from ..inbox.held import Claim
from ..inbox.jobs import Job
from ..inbox.jobs import state_of
from ..inbox.keys import HeldKey
from ..inbox.status import JobState
from ..log import hide_parameters
from ..log import log
from ..storage.engines import is_in_memory
from ..storage.store import Store
from ..subscribers import run_to_end
from ..subscribers import Subscriber
from ..subscribers import to_end
from .failures import describe
from .sessions import end_session
from .sessions import session_scope
from .sessions import used_session

COMMITS = (
    "%s commits in the session of the app: what it has written by then is written again"
    " when it fails later or its process is killed. Leave the commit to the package:"
    " it commits the writes together with the end of the job"
)
_WARNED = "procore_webhooks_commits"

#: The call in whose context the code runs: sessions that it uses are the call's.
current: ContextVar[Call | None] = ContextVar("procore_webhooks_call", default=None)


class CallAbandoned(BaseException):
    """The call exceeded its time limit, and another thread runs the rest of the event.

    Not an ``Exception``, so that a subscriber that goes on does not catch it.
    """


class Outlived(Exception):
    """The run has outlived its lease or its timeout."""


class Call:
    """One call of one subscriber for one event, functions of its options included.

    :param take_over: is called in a new thread when the call exceeds its time limit.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        claim: Claim,
        subscriber: Subscriber,
        event: Event,
        job: Job,
        take_over: Callable[[Call], None],
    ) -> None:
        self.endpoint = endpoint
        self.store = store
        self.claim = claim
        self.subscriber = subscriber
        #: As it is before the call.
        self.job = job
        #: What it holds until it ends.
        self.key: HeldKey | None = None
        #: The row of a newer event that runs now instead of this one.
        self.instead: int | None = None
        self.event = event
        self.take_over = take_over
        #: By the monotonic clock, like :attr:`deadline`.
        self.started = self.warned_at = time.monotonic()
        #: Seconds.
        self.limit = subscriber.timeout or endpoint.settings.timeout
        # A durable claim is that of a request, whose thread belongs to the server.
        self.deadline = inf if claim.durable else self.started + self.limit
        #: When it began, as it is stored.
        self.began = self.store.db_now()
        #: The job, if the subscriber has finished.
        self.ended: Job | None = None
        self.is_committed = False
        #: What the subscriber raised, or the host before it was called.
        self.error: BaseException | None = None
        #: What the host raised after the subscriber had ended.
        self.late_error: BaseException | None = None
        self.is_abandoned = False
        self._has_ended = False
        #: Whether it commits now, with the end of its job.
        self.commits = False
        #: The session that it is given.
        self.session: Session | None = None
        #: On which sessions of the call work.
        self.connections: list[Connection] = []
        self._lock = threading.Lock()

    def perform(self) -> None:
        """Call the subscriber. Afterwards ``ended`` or ``error`` is its outcome.

        :raises CallAbandoned: another thread has taken over.
        """
        # What the host leaves in the context, for example an app context after an
        # error in one of its signals, ends with the call.
        copy_context().run(self._perform)
        self.end()

    def end(self) -> None:
        """Let no other thread take over from now on.

        :raises CallAbandoned: another thread has taken over.
        """
        with self._lock:
            self._has_ended = True
            if self.is_abandoned:
                raise CallAbandoned

    def finished(self, state: JobState = JobState.DONE) -> Job:
        """The job as it is when the subscriber has finished."""
        return self.job.ended(state, self.store.db_now(), self.began)

    def abandon(self, hand_over: Callable[[], object]) -> bool:
        """Give the call up; ``False`` if it has ended.

        :param hand_over: is called before the thread of the call can go on.
        """
        with self._lock:
            if not self._has_ended:
                self.is_abandoned = True
                hand_over()
            return self.is_abandoned

    def cut(self) -> None:
        """End the connections of the call's sessions, with their locks."""
        for connection in self.connections:
            try:
                cut(connection)
            except Exception as error:
                log.warning(
                    "A connection that %s uses for %s cannot be ended: %s",
                    self.subscriber.name,
                    describe(self.event),
                    type(error).__name__,
                )

    def _perform(self) -> None:
        current.set(self)
        try:
            # An empty ``g``, and no session of a caller.
            with self.endpoint.app.app_context():
                try:
                    self._call()
                except BaseException as error:
                    if self.ended is None:
                        self.error = error
                    raise
        except BaseException as error:
            self._sort(error)

    def _sort(self, error: BaseException) -> None:
        """Keep an error that has left the app context in its place."""
        if self.ended is None and self.error is None:
            # The subscriber was not called.
            self.error = error
        if error is self.error or self.is_abandoned:
            return
        self.late_error = error
        hide_parameters(error)
        log.error(
            "%s had ended for %s, and stays so, when the app failed around it",
            self.subscriber.name,
            describe(self.event),
            exc_info=error,
        )

    def _call(self) -> None:
        app, source = self.endpoint.app, self.store.session
        if source is None:
            run_to_end(app, self.subscriber(app, self.event))
            self.ended = self.finished()
            return
        with session_scope(source) as session:
            self.session = session

            async def finish(work: Awaitable[object]) -> None:
                # In the thread of an event loop, which may have its own session.
                try:
                    await to_end(work)
                    self._commit(used_session(session, source))
                finally:
                    end_session(source)

            result = self.subscriber(app, self.event)
            if inspect.isawaitable(result):
                app.ensure_sync(finish)(result)
            else:
                self._commit(used_session(session, source))

    def _commit(self, session: Session | None) -> None:
        """Commit the subscriber's writes with the end of its job."""
        if self.is_abandoned:
            raise CallAbandoned
        ended = self.finished()
        if session is None:
            self.ended = ended
            return
        self.commits = True
        session.flush()
        row_id = self.claim.row_id
        refusal: Exception = Outlived("its writes are rolled back")
        try:
            is_written = finish_in_session(self.store, row_id, ended, self.key, session)
        except IntegrityError as error:
            is_written, refusal = False, error
        if not is_written:
            return self._reject(session, refusal)
        try:
            session.commit()
        except BaseException:
            # Hooks of the host also run after the commit; the row decides.
            if self._has_finished(session):
                self.ended, self.is_committed = ended, True
            raise
        self.ended, self.is_committed = ended, True

    def _reject(self, session: Session, refusal: Exception) -> None:
        """Roll back: the row of the job is not the one that the claim saw."""
        if not self._has_finished(session):
            raise refusal
        # Another run has finished it since the lease of this one ended. The writes of
        # that run stand, and these are rolled back.
        log.warning("%s had finished %s", self.subscriber.name, describe(self.event))
        self.ended, self.is_committed = self.finished(), True

    def _has_finished(self, session: Session) -> bool:
        """Whether the job is done; the session is rolled back first."""
        with suppress(Exception):
            session.rollback()
        name = self.subscriber.name
        try:
            return state_of(self.store, self.claim.row_id, name) is JobState.DONE
        except InboxUnavailable:
            return False


@sqlalchemy_event.listens_for(Session, "after_begin")
def _note_begin(session: Session, transaction: Any, connection: Connection) -> None:
    """Note the connection for its call: a call may use sessions of any kind."""
    call = current.get()
    if call is None:
        return
    others = filterfalse(attrgetter("closed"), call.connections)
    call.connections = [*others, connection]
    if call.is_abandoned:
        # That would destroy a database in memory.
        if not is_in_memory(connection.engine.url):
            connection.invalidate()
        raise CallAbandoned


@sqlalchemy_event.listens_for(Session, "after_commit")
def _warn_of_commit(session: Session) -> None:
    """Log once that a subscriber commits what is committed with its job otherwise."""
    call = current.get()
    if call is None or call.commits or session is not call.session:
        return
    warned: set[str] = call.endpoint.state.runtime.part(_WARNED, set)
    if call.connections and call.subscriber.name not in warned:
        warned.add(call.subscriber.name)
        log.warning(COMMITS, call.subscriber.name)
