"""Alarms: the thread that calls functions at given times."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from math import inf

import pytest
from support.inboxes import record
from support.waiting import PATIENCE
from support.waiting import wait_until

from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.running.leases import LeaseRenewer
from flask_procore_webhooks.running.leases import renewing
from flask_procore_webhooks.runtime import Alarms
from flask_procore_webhooks.storage.store import Store


class Owner:
    """An owner whose first calls fail."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.called = error, threading.Event()

    def work(self) -> float:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.called.set()
        return inf


def test_error_is_logged_and_the_alarm_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alarms, failing, other = Alarms(), Owner(OSError("no")), Owner()
    alarms.set(failing, time.monotonic(), failing.work)
    assert failing.called.wait(PATIENCE)
    assert "An alarm failed, and is repeated" in caplog.text
    alarms.set(other, time.monotonic(), other.work)
    assert other.called.wait(PATIENCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_has_died_is_replaced() -> None:
    alarms, failing, other = Alarms(), Owner(SystemExit()), Owner()
    alarms.set(failing, time.monotonic(), failing.work)
    thread = alarms._thread
    assert thread is not None
    thread.join(PATIENCE)
    alarms.set(other, time.monotonic(), other.work)
    assert other.called.wait(PATIENCE)


def test_earlier_alarm_wakes_the_thread() -> None:
    alarms, late, early = Alarms(), Owner(), Owner()
    alarms.set(late, time.monotonic() + 3600, late.work)
    wait_until(lambda: alarms._wakes_at > 0)
    alarms.set(early, time.monotonic(), early.work)
    assert early.called.wait(PATIENCE)
    assert list(alarms.alarms) == [late]


def test_waiting_thread_references_no_discarded_owner() -> None:
    alarms, first, second = Alarms(), Owner(), Owner()
    alarms.set(first, time.monotonic() + 3600, first.work)
    alarms.set(second, time.monotonic(), second.work)
    assert second.called.wait(PATIENCE)
    wait_until(lambda: alarms._wakes_at > 0)
    found = weakref.ref(first)
    alarms.discard(first)
    del first
    gc.collect()
    assert found() is None


def test_alarm_of_an_ended_run_is_removed(store: Store) -> None:
    record(store, "evt_1")
    claimed = batches.claim_due(store, 1, 600)
    alarms = Alarms()
    with renewing(store, claimed, 600) as held:
        alarms = store.database.parts[LeaseRenewer].alarms
        alarms.set(held, time.monotonic() + 3600, held.watch)
    assert alarms.alarms == {}
