"""Runs what is due, batch after batch, until it is told to stop.

The thread of ``background`` is a worker, and so is each of the command ``worker``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection

from .endpoint import Endpoint
from .errors import InboxUnavailable
from .inbox import Claim
from .leases import Holding
from .leases import keeping
from .process import release
from .process import run_claimed
from .upkeep import seconds_to_work

log = logging.getLogger("flask_procore_webhooks")

#: Events of a batch at most, and the seconds after which the rest of it is given back:
#: what is claimed waits for its turn here though another worker may be idle.
LARGEST_BATCH = 32
BATCH_SECONDS = 1.0
#: Seconds between two looks while the database is away: doubled from the first on.
FIRST_OUTAGE_WAIT = 0.5
LONGEST_OUTAGE_WAIT = 15.0
#: Seconds that are slept at least, so that an event which is due and which somebody
#: else has locked causes no busy loop.
SHORTEST_SLEEP = 0.1


class Worker:
    """One loop; any number of them, in any number of processes, share the work.

    :param endpoints: whose events it runs.
    :param poll: seconds after which it looks for work that nobody has told it of.
    """

    def __init__(self, endpoints: Collection[Endpoint], *, poll: float) -> None:
        self.endpoints = endpoints
        self.poll = poll
        #: Events that were run so far.
        self.ran = 0
        self._alarm = threading.Event()
        self._stopping = False
        self._batch = 1
        #: What is being run, by endpoint, or could not be given back.
        self._held: dict[str, Holding] = {}
        self._outage_wait = 0.0
        #: What the last look has found, by endpoint.
        self._waits: dict[str, float | None] = {}

    def run(self) -> None:
        """Run what is due, and wait for more, until :meth:`stop` is called."""
        while not self._stopping:
            if seconds := self._try():
                self._alarm.wait(seconds)
                # Between the wait and the next look, so that no call is missed.
                self._alarm.clear()

    def run_due(self) -> int:
        """Run a batch of what is due at each endpoint; return how many were run.

        :raises InboxUnavailable: after all endpoints had their turn. What was claimed
            and not settled is given back by the next call, or is free after its lease.
        """
        ran, failure = 0, None
        for endpoint in self.endpoints:
            try:
                ran += self._run_endpoint(endpoint)
            except InboxUnavailable as unavailable:
                # One database that is away holds nobody else up.
                failure = unavailable
        if failure:
            raise failure
        return ran

    def run_all(self) -> int:
        """Run until nothing is due, or :meth:`stop` is called; return how many."""
        total = 0
        while ran := self.run_due():
            total += ran
        return total

    def wake(self) -> None:
        """There is something to do."""
        self._alarm.set()

    def stop(self) -> None:
        """End after the event that is being run now."""
        self._stopping = True
        self._alarm.set()

    def give_back(self) -> None:
        """Return what is still held, for others to run.

        :raises InboxUnavailable: some is held on, to the next call or its lease's end.
        """
        for endpoint in self.endpoints:
            self._give_back(endpoint)

    def _give_back(self, endpoint: Endpoint) -> None:
        holding = self._held.get(endpoint.name)
        if holding is not None:
            holding.close()
            # A run that began may be going on still: it gets the wait of a failed one.
            for claim in holding.begun():
                release(endpoint, claim)
            endpoint.inbox.give_back(holding.not_begun())
            self._held.pop(endpoint.name, None)

    def _try(self) -> float:
        """Run what is due; return the seconds to sleep, 0 if there may be more."""
        try:
            seconds = 0.0 if self.run_due() else self._seconds_to_sleep()
        except InboxUnavailable as unavailable:
            self._wait_longer()
            log.error("Looking again in %g s: %s", self._outage_wait, unavailable)
            return self._outage_wait
        except Exception:
            self._wait_longer()
            log.exception("Going on in %g s after an error", self._outage_wait)
            return self._outage_wait
        self._outage_wait = 0.0
        return seconds

    def _wait_longer(self) -> None:
        doubled = max(FIRST_OUTAGE_WAIT, self._outage_wait * 2)
        self._outage_wait = min(doubled, LONGEST_OUTAGE_WAIT)

    def _run_endpoint(self, endpoint: Endpoint) -> int:
        self._give_back(endpoint)
        wait = self._waits[endpoint.name] = seconds_to_work(endpoint.inbox)
        if self._stopping or wait != 0.0:
            return 0
        seconds = endpoint.settings.lease
        claims = endpoint.inbox.claim_due(self._batch, seconds)
        if not claims:
            return 0
        with keeping(endpoint.inbox, claims, seconds) as holding:
            self._held[endpoint.name] = holding
            ran = self._run_batch(endpoint, claims, holding)
        self._give_back(endpoint)
        return ran

    def _run_batch(
        self, endpoint: Endpoint, claims: list[Claim], holding: Holding
    ) -> int:
        start, done, seconds = time.monotonic(), 0, 0.0
        for claim in claims:
            # What takes longer than its like took before is left to others, too.
            if self._stopping or seconds >= BATCH_SECONDS or not holding.begin(claim):
                break
            self._run_begun(endpoint, claim)
            holding.drop(claim)
            done, seconds = done + 1, time.monotonic() - start
        self._adjust(done, seconds)
        return done

    def _run_begun(self, endpoint: Endpoint, claim: Claim) -> None:
        self.ran += 1
        try:
            run_claimed(endpoint, claim)
        except Exception:
            raise
        except BaseException as error:
            # SystemExit of a subscriber ends its run, which is repeated; not us.
            log.error("Event %s was interrupted: %r", claim.event_id, error)

    def _adjust(self, events: int, seconds: float) -> None:
        """Take as many next time as may be done in ``BATCH_SECONDS``."""
        fitting = int(BATCH_SECONDS * events / max(seconds, 1e-6))
        self._batch = max(1, min(fitting, self._batch * 2, LARGEST_BATCH))

    def _seconds_to_sleep(self) -> float:
        waits = [wait for wait in self._waits.values() if wait is not None]
        return max(SHORTEST_SLEEP, min([self.poll, *waits]))
