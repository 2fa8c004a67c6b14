"""Worker: a loop that runs due events, batch after batch.

Each thread of ``background`` and of the command ``worker`` is a worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from contextlib import suppress
from functools import partial

from ..endpoint import by_database
from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..inbox.batches import claim_due
from ..inbox.batches import release
from ..inbox.due import seconds_to_work
from ..inbox.held import Claim
from ..log import log
from ..operations.seen import is_note_due
from ..operations.seen import note_seen
from ..running.calls import CallAbandoned
from ..running.failures import interrupt
from ..running.failures import RunOutcome
from ..running.held import HeldClaims
from ..running.leases import longest_call
from ..running.leases import renew_late
from ..running.leases import renewing
from ..running.run import run_claimed
from .crew import Crew

#: Events in a batch at most.
LARGEST_BATCH = 32
#: Seconds between two polls while the database is away: doubled from the first on.
FIRST_OUTAGE_WAIT = 0.5
LONGEST_OUTAGE_WAIT = 15.0
#: Minimum sleep in seconds: avoids a busy loop while another worker holds a row lock.
SHORTEST_SLEEP = 0.1


class Worker:
    """One loop; any number of them, in any number of processes, share the work.

    :param poll: seconds between two polls for work without a notification.
    :param sleep: waits for so many seconds or until :meth:`wake`; for tests.
    :param crew: the others that share its work.
    """

    def __init__(
        self,
        endpoints: Collection[Endpoint],
        *,
        poll: float,
        sleep: Callable[[float], object] | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.poll = poll
        self.crew = crew or Crew()
        #: Events that were run so far.
        self.ran = 0
        self._alarm = threading.Event()
        self._sleep = sleep or self._alarm.wait
        #: Whether :meth:`stop` was called.
        self.is_stopping = False
        #: Whether it has found nothing to do, and sleeps.
        self.is_idle = False
        #: Whether a call of its thread was abandoned: it runs nothing else.
        self.is_abandoned = False
        #: Whether it has lost a claim before its run began or ended.
        self._has_lost = False
        self._batch_size = 1
        #: Claims that are running, or could not be released, by endpoint.
        self._held: dict[str, HeldClaims] = {}
        self._outage_wait = 0.0
        #: Seconds to the next work, as the last poll has found, by endpoint.
        self._waits: dict[str, float | None] = {}

    def run(self) -> None:
        """Run due events and wait for more until :meth:`stop` is called."""
        while not self._is_ending and self.crew.needs(self):
            if seconds := self._try():
                self.is_idle = True
                self._sleep(seconds)
                self.is_idle = False
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
        total, goes_on = 0, True
        while goes_on and not self._is_ending:
            self._has_lost = False
            total += (ran := self.run_due())
            # What it has lost, for example because the machine stalled, may be due.
            goes_on = ran > 0 or self._has_lost
        return total

    def wake(self) -> None:
        """Wake the worker to poll for due events."""
        self._alarm.set()

    def stop(self) -> None:
        """End after the event that is running now."""
        self.is_stopping = True
        self._alarm.set()

    @property
    def is_slow(self) -> bool:
        """Whether it has been on one call for longer than a lease."""
        for held in list(self._held.values()):
            call = held.call
            if call and time.monotonic() - call.started > held.seconds:
                return True
        return False

    def release(self) -> None:
        """Release every held claim for other workers.

        :raises InboxUnavailable: some are held until the next call or their lease ends.
        """
        for endpoint in self.endpoints:
            self._release(endpoint)

    @property
    def _is_ending(self) -> bool:
        return self.is_stopping or self.is_abandoned

    def _on_hang(self) -> None:
        if any(held.is_abandoned for held in list(self._held.values())):
            self.is_abandoned = True
        self.crew.check()

    def _run_group(self, group: list[Endpoint]) -> int:
        """Run a batch of due events at each endpoint of one database."""
        ran, failure, polled_at = 0, None, float("-inf")
        for endpoint in group:
            # Again when batches have taken long: an endpoint may be paused meanwhile.
            if time.monotonic() - polled_at > self.crew.batch_seconds:
                self._poll(group)
                polled_at = time.monotonic()
            # An error at one endpoint delays no other.
            try:
                if self._waits[endpoint.name] == 0.0 and not self._is_ending:
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
        if is_note_due(group[0].store):
            with suppress(InboxUnavailable):
                self._note_seen(group)

    def _note_seen(self, group: list[Endpoint]) -> None:
        names = [endpoint.name for endpoint in group]
        longest = longest_call([endpoint.store for endpoint in group])
        runs = self.crew.runs(self.ran)
        note_seen(group[0].store, self.crew.mode, names, runs, longest)

    def _release(self, endpoint: Endpoint) -> None:
        """Release the claims of the endpoint; write what has ended before."""
        if held := self._held.get(endpoint.name):
            held.close()
            held.flush()
            for claim in held.started():
                # A run may have ended meanwhile.
                if not held.is_done(claim):
                    interrupt(endpoint, claim)
            held.flush()
            release(endpoint.store, held.queued())
            self._held.pop(endpoint.name, None)
            self.crew.released(endpoint, [*held.claims])

    def _try(self) -> float:
        """Run due events; return the seconds to sleep, 0 if there may be more."""
        try:
            seconds = 0.0 if self.run_due() else self._seconds_to_sleep()
        except Exception as error:
            doubled = max(FIRST_OUTAGE_WAIT, self._outage_wait * 2)
            seconds = self._outage_wait = min(doubled, LONGEST_OUTAGE_WAIT)
            if isinstance(error, InboxUnavailable):
                log.error("Polling again in %g s: %s", seconds, error)
            else:
                log.exception("Polling again in %g s after an error", seconds)
        else:
            self._outage_wait = 0.0
        return seconds

    def _run_endpoint(self, endpoint: Endpoint) -> int:
        store, seconds = endpoint.store, endpoint.settings.lease
        renew_late(store)
        claims = claim_due(store, self._batch_size, seconds)
        if not claims:
            return 0
        # There may be more than this batch, which may take long.
        if len(claims) == self._batch_size and self.crew.has_room():
            if seconds_to_work([store])[store.endpoint] == 0.0:
                self.crew.wake()
        released = partial(self.crew.released, endpoint)
        with renewing(store, claims, seconds, self._on_hang, released) as held:
            self._held[endpoint.name] = held
            ran = self._run_batch(endpoint, claims, held)
        self.ran -= held.lost
        self._has_lost |= held.lost > 0
        self._release(endpoint)
        return ran - held.lost

    def _run_batch(
        self, endpoint: Endpoint, claims: list[Claim], held: HeldClaims
    ) -> int:
        start, done, seconds = time.monotonic(), 0, 0.0
        for claim in claims:
            # If the first events take longer than expected, the rest is released too.
            if self._is_ending or seconds >= self.crew.batch_seconds:
                break
            if not self._run_claimed(endpoint, claim, held):
                break
            held.remove(claim)
            held.flush_due()
            done, seconds = done + 1, time.monotonic() - start
        self._adjust(done, seconds)
        return done

    def _run_claimed(self, endpoint: Endpoint, claim: Claim, held: HeldClaims) -> bool:
        """Run an event; ``False`` if the claim was lost, or a call is abandoned."""
        self.ran += 1
        woken: list[int] = []
        try:
            outcome = run_claimed(endpoint, claim, held, woken)
            if outcome is not RunOutcome.NOT_CLAIMED:
                self.crew.ended(endpoint, claim.row_id, outcome, woken)
                return True
            self.ran, self._has_lost = self.ran - 1, True
            return False
        except CallAbandoned:
            self.is_abandoned = True
            return False
        except Exception:
            raise
        except BaseException as error:
            # A subscriber's SystemExit ends its run, which is repeated, not the worker.
            log.error("Event %s was interrupted: %r", claim.event_id, error)
            self.crew.interrupted(error)
            return True

    def _adjust(self, events: int, seconds: float) -> None:
        """Claim as many events next time as may run in ``batch_seconds``."""
        fitting = int(self.crew.batch_seconds * events / max(seconds, 1e-6))
        self._batch_size = max(1, min(fitting, self._batch_size * 2, LARGEST_BATCH))

    def _seconds_to_sleep(self) -> float:
        waits = [wait for wait in self._waits.values() if wait is not None]
        return max(SHORTEST_SLEEP, min([self.poll, *waits]))
