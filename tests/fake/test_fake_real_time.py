"""FakeProcore's thread, and its clock in real time."""

from __future__ import annotations

import threading
from datetime import timedelta

from fake_support import Destination
from fake_support import hooked
from fake_support import statuses
from support.waiting import wait_until

from flask_procore_webhooks.fake import FakeProcore


def test_thread_delivers_in_real_time(fake: FakeProcore, there: Destination) -> None:
    fake.switches.first_wait = 0.05
    there.statuses = [500]
    hooked(fake, there)
    fake.start_sending(every=0.01)
    try:
        fake.emit("RFIs", "create", project="2")
        there.wait_for(2)
    finally:
        # After the attempt that goes on.
        fake.stop_sending()
    assert statuses(fake) == ["delivered"]
    assert there.bodies[0] == there.bodies[1]


def test_thread_is_started_and_ended_once(fake: FakeProcore) -> None:
    before = {*threading.enumerate()}
    fake.start_sending()
    fake.start_sending()
    try:
        assert len({*threading.enumerate()} - before) == 1
    finally:
        fake.stop_sending()
    fake.stop_sending()
    assert {*threading.enumerate()} <= before


def test_standing_clock_runs_while_the_thread_delivers(fake: FakeProcore) -> None:
    fake.start_sending()
    try:
        assert fake.clock.running
    finally:
        fake.stop_sending()
    assert not fake.clock.running


def test_running_clock_runs_on_after_the_thread() -> None:
    fake = FakeProcore()
    fake.start_sending()
    fake.stop_sending()
    assert fake.clock.running


def test_clock_without_a_time_runs() -> None:
    fake = FakeProcore()
    before = fake.clock.now()
    wait_until(lambda: fake.clock.now() > before)


def test_running_clock_can_be_moved() -> None:
    fake = FakeProcore()
    before = fake.clock.now()
    fake.advance(hours=1)
    assert fake.clock.now() - before >= timedelta(hours=1)
