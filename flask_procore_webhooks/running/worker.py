"""Worker: a loop that runs due events, batch after batch. WorkerPool: its threads.

The thread of ``background`` is a worker, and so is each thread of the command
``worker``.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from types import FrameType

from ..endpoint import by_database
from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..inbox.claims import Claim
from ..inbox.claims import claim_due
from ..inbox.claims import release
from ..inbox.due import seconds_to_work
from ..inbox.operations import note_seen
from .leases import HeldClaims
from .leases import renewing
from .run import interrupt
from .run import run_claimed

log = logging.getLogger("flask_procore_webhooks")

#: Events in a batch at most, and the seconds after which the rest of it is released: a
#: claimed event waits for its turn here although another worker may be idle.
LARGEST_BATCH = 32
BATCH_SECONDS = 1.0
#: Seconds between two polls while the database is away: doubled from the first on.
FIRST_OUTAGE_WAIT = 0.5
LONGEST_OUTAGE_WAIT = 15.0
#: Minimum sleep in seconds: avoids a busy loop while another worker holds a row lock.
SHORTEST_SLEEP = 0.1
#: Signals that end a :class:`WorkerPool`.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """One loop; any number of them, in any number of processes, share the work.

    :param endpoints: the endpoints whose events it runs.
    :param poll: seconds between two polls for work without a notification.
    :param sleep: waits for so many seconds or until :meth:`wake`; for tests.
    :param mode: what ``stats`` and ``check`` show.
    """

    def __init__(
        self,
        endpoints: Collection[Endpoint],
        *,
        poll: float,
        sleep: Callable[[float], object] | None = None,
        mode: str = "worker",
    ) -> None:
        self.endpoints = endpoints
        self.mode = mode
        self.peers = [self]
        self.poll = poll
        #: Events that were run so far.
        self.ran = 0
        self._alarm = threading.Event()
        self._sleep = sleep or self._alarm.wait
        #: Whether :meth:`stop` was called.
        self.is_stopping = False
        self._batch_size = 1
        #: Claims that are running, or could not be released, by endpoint.
        self._held: dict[str, HeldClaims] = {}
        self._outage_wait = 0.0
        #: Seconds to the next work, as the last poll has found, by endpoint.
        self._waits: dict[str, float | None] = {}

    def run(self) -> None:
        """Run due events and wait for more until :meth:`stop` is called."""
        while not self.is_stopping:
            if seconds := self._try():
                self._sleep(seconds)
                # Between the sleep and the next poll, so that no call is missed.
                self._alarm.clear()

    def run_due(self) -> int:
        """Run a batch of due events at each endpoint; return how many were run.

        :raises InboxUnavailable: after every endpoint had its turn. Claims that are not
            settled are released by the next call, or are free when their lease ends.
        """
        ran, failure = 0, None
        for group in by_database(self.endpoints):
            # A database that is away delays no other.
            try:
                ran += self._run_group(group)
            except Exception as error:
                failure = error
        if failure:
            raise failure
        return ran

    def run_all(self) -> int:
        """Run until nothing is due or :meth:`stop` is called; return how many."""
        total = 0
        while ran := self.run_due():
            total += ran
        return total

    def wake(self) -> None:
        """Wake the worker to poll for due events."""
        self._alarm.set()

    def stop(self) -> None:
        """End after the event that is running now."""
        self.is_stopping = True
        self._alarm.set()

    def release(self) -> None:
        """Release every held claim for other workers.

        :raises InboxUnavailable: some are held until the next call or their lease ends.
        """
        for endpoint in self.endpoints:
            self._release(endpoint)

    def _run_group(self, group: list[Endpoint]) -> int:
        """Run a batch of due events at each endpoint of one database."""
        ran, failure, polled_at = 0, None, float("-inf")
        for endpoint in group:
            # Again when batches have taken long: an endpoint may be paused meanwhile.
            if time.monotonic() - polled_at > BATCH_SECONDS:
                self._poll(group)
                polled_at = time.monotonic()
            # An error at one endpoint delays no other.
            try:
                if self._waits[endpoint.name] == 0.0 and not self.is_stopping:
                    ran += self._run_endpoint(endpoint)
            except Exception as error:
                failure = error
        if failure:
            raise failure
        return ran

    def _poll(self, group: list[Endpoint]) -> None:
        """Ask one database once when there is work for its endpoints."""
        for endpoint in group:
            self._release(endpoint)
        self._waits |= dict.fromkeys(endpoint.name for endpoint in group)
        self._waits |= seconds_to_work([endpoint.store for endpoint in group])
        with suppress(InboxUnavailable):
            ran = [peer.ran for peer in self.peers]
            note_seen(group[0].store, self.mode, [e.name for e in group], ran)

    def _release(self, endpoint: Endpoint) -> None:
        held = self._held.get(endpoint.name)
        if held is not None:
            held.close()
            # A started run may still be going on: it gets the wait of a failed run.
            for claim in held.started():
                interrupt(endpoint, claim)
            release(endpoint.store, held.queued())
            self._held.pop(endpoint.name, None)

    def _try(self) -> float:
        """Run due events; return the seconds to sleep, 0 if there may be more."""
        try:
            seconds = 0.0 if self.run_due() else self._seconds_to_sleep()
        except InboxUnavailable as unavailable:
            self._wait_longer()
            log.error("Polling again in %g s: %s", self._outage_wait, unavailable)
            return self._outage_wait
        except Exception:
            self._wait_longer()
            log.exception("Polling again in %g s after an error", self._outage_wait)
            return self._outage_wait
        self._outage_wait = 0.0
        return seconds

    def _wait_longer(self) -> None:
        doubled = max(FIRST_OUTAGE_WAIT, self._outage_wait * 2)
        self._outage_wait = min(doubled, LONGEST_OUTAGE_WAIT)

    def _run_endpoint(self, endpoint: Endpoint) -> int:
        store, seconds = endpoint.store, endpoint.settings.lease
        claims = claim_due(store, self._batch_size, seconds)
        if not claims:
            return 0
        with renewing(store, claims, seconds) as held:
            self._held[endpoint.name] = held
            ran = self._run_batch(endpoint, claims, held)
        self._release(endpoint)
        return ran

    def _run_batch(
        self, endpoint: Endpoint, claims: list[Claim], held: HeldClaims
    ) -> int:
        start, done, seconds = time.monotonic(), 0, 0.0
        for claim in claims:
            # If the first events take longer than expected, the rest is released too.
            if self.is_stopping or seconds >= BATCH_SECONDS or not held.start(claim):
                break
            self._run_started(endpoint, claim)
            held.remove(claim)
            done, seconds = done + 1, time.monotonic() - start
        self._adjust(done, seconds)
        return done

    def _run_started(self, endpoint: Endpoint, claim: Claim) -> None:
        self.ran += 1
        try:
            run_claimed(endpoint, claim)
        except Exception:
            raise
        except BaseException as error:
            # A subscriber's SystemExit ends its run, which is repeated, not the worker.
            log.error("Event %s was interrupted: %r", claim.event_id, error)

    def _adjust(self, events: int, seconds: float) -> None:
        """Claim as many events next time as may run in ``BATCH_SECONDS``."""
        fitting = int(BATCH_SECONDS * events / max(seconds, 1e-6))
        self._batch_size = max(1, min(fitting, self._batch_size * 2, LARGEST_BATCH))

    def _seconds_to_sleep(self) -> float:
        waits = [wait for wait in self._waits.values() if wait is not None]
        return max(SHORTEST_SLEEP, min([self.poll, *waits]))


class WorkerPool:
    """Workers, a thread for each."""

    def __init__(self, workers: list[Worker]) -> None:
        #: Why a thread ended without being stopped.
        self.failure: Exception | None = None
        self._workers = workers
        for worker in workers:
            worker.peers = workers
        self._threads: list[threading.Thread] = []
        self._was_signalled = threading.Event()

    @property
    def ran(self) -> int:
        return sum(worker.ran for worker in self._workers)

    @property
    def is_running(self) -> bool:
        """Whether a run has not ended yet."""
        return any(thread.is_alive() for thread in self._threads)

    def run(self, once: bool) -> None:
        """Start the threads; return when they have ended, or at a signal."""
        for worker in self._workers:
            work = worker.run_all if once else worker.run
            thread = threading.Thread(target=self._watch, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)
        while self.is_running:
            if self._was_signalled.wait(0.05 if once else 1.0):
                return

    def wake(self) -> None:
        """Wake every worker to poll for due events."""
        for worker in self._workers:
            worker.wake()

    def end(self, grace: float) -> None:
        """Let every worker end after its event; release the rest after ``grace``."""
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            # If the database is away, the claims are free when their lease ends.
            with suppress(InboxUnavailable):
                worker.release()

    @contextmanager
    def ends_on_signals(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._end) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._was_signalled.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def _watch(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self.failure = error
