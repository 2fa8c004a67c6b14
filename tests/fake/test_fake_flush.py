"""FakeProcore's queues: flushed, discarded, and those of disabled hooks."""

from __future__ import annotations

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked
from fake_support import PROJECT
from fake_support import statuses

from flask_procore_webhooks.fake import FakeProcore


def test_queue_is_flushed_after_twelve_hours(
    fake: FakeProcore, there: Destination
) -> None:
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.emit("RFIs", "update", project="2")
    fake.advance(hours=12)
    assert statuses(fake) == ["discarded", "discarded"]
    assert [len(row["delivery_attempts"]) for row in fake.deliveries()] == [23, 0]
    assert fake.advance(hours=12) == 0


def test_an_event_after_a_flush_starts_afresh(
    fake: FakeProcore, there: Destination
) -> None:
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(hours=13)
    fake.emit("RFIs", "update", project="2")
    assert fake.deliver() == 1
    assert fake.advance(seconds=1) == 1
    there.status = 200
    assert fake.advance(seconds=2) == 1
    assert statuses(fake) == ["discarded", "delivered"]
    assert fake.hooks()[0]["status"] == "active"


def test_hook_that_was_down_too_long_gets_one_more_attempt(
    fake: FakeProcore, there: Destination
) -> None:
    there.statuses = [500]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.deliver()
    fake.clock.advance(hours=13)
    assert fake.deliver() == 1
    assert statuses(fake) == ["delivered"]


def test_flush_can_disable_the_hook(fake: FakeProcore, there: Destination) -> None:
    fake.switches.disables_after_flush = True
    there.status = 500
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(hours=13)
    assert fake.hooks()[0]["status"] == "disabled"
    fake.emit("RFIs", "create", project="2")
    assert len(fake.deliveries()) == 1


def test_discarded_row_can_be_a_new_row(fake: FakeProcore, there: Destination) -> None:
    fake.switches.discards_same_row = False
    hook = hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    before = fake.deliveries()[0]
    assert fake.discard(hook) == 1
    after = fake.deliveries()[0]
    assert after["status"] == "discarded"
    assert after["id"] != before["id"]
    assert after["payload"] == before["payload"]
    assert fake.deliver() == 0


def test_flush_can_end_in_another_status(fake: FakeProcore, there: Destination) -> None:
    hook = hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.discard(hook, "failed")
    assert statuses(fake) == ["failed"]


@pytest.mark.parametrize(("scope", "attempts"), [("hook", 2), ("url", 1)])
def test_pause_is_of_a_hook_or_a_url(
    fake: FakeProcore, there: Destination, scope: str, attempts: int
) -> None:
    fake.switches.pause_scope = scope
    there.status = 500
    hooked(fake, there)
    hooked(fake, there, namespace="other")
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == attempts
    fake.advance(hours=12)
    assert statuses(fake) == ["discarded", "discarded"]


def test_disabled_hook_keeps_its_queue(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    fake.emit("RFIs", "create", project="2")
    api.data("PATCH", path, {"status": "disabled"})
    fake.emit("RFIs", "update", project="2")
    assert fake.advance(hours=13) == 0
    api.data("PATCH", path, {"status": "active"})
    assert fake.deliver() == 1
    assert statuses(fake) == ["delivered"]


def test_disabling_a_hook_can_flush_its_queue(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    fake.switches.pause_keeps_queue = False
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    fake.emit("RFIs", "create", project="2")
    api.data("PATCH", path, {"status": "disabled"})
    assert statuses(fake) == ["discarded"]
