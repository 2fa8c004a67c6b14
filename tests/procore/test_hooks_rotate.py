"""``hooks apply --rotate`` while Procore sends: every event arrives once."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Response
from hooks_support import AUTHORIZATION
from hooks_support import OTHER_PROJECT
from hooks_support import OTHER_TAIL
from hooks_support import PROJECT
from hooks_support import Site
from hooks_support import URL
from support.waiting import wait_until

from flask_procore_webhooks.endpoint import endpoints


def recorded(site: Site) -> list[str]:
    """The ids of the events in the inbox."""
    (endpoint,) = endpoints(site.app).values()
    store = endpoint.store
    return sorted(row.event_id for row in store.rows(sa.select(store.columns.event_id)))


def deploy(site: Site, value: str, *fallbacks: str) -> None:
    """Mount an app with these values, which receives deliveries from now on."""
    site.mount(
        "RFIs.update",
        SECRET=None,
        AUTHORIZATION=value,
        AUTHORIZATION_FALLBACKS=[*fallbacks],
        SCOPES=[PROJECT, OTHER_PROJECT],
        DATABASE_URI=f"sqlite:///{site.folder / 'inbox.db'}",
    )
    site.fake.receive(URL, site.app)


def all_delivered(site: Site) -> bool:
    return all(row["status"] == "delivered" for row in site.fake.deliveries())


def test_rotation_with_a_fallback_loses_no_delivery(site: Site) -> None:
    fake, emitted, rotates = site.fake, list[str](), list[bool]()

    def emit(number: int) -> None:
        for project in ["2", "3"] * number:
            emitted.append(fake.emit("RFIs", "update", company="1", project=project))

    def expect_delivered() -> None:
        wait_until(lambda: all_delivered(site))

    @fake.after_request
    def emit_at_each_answer(answer: Response) -> Response:
        if rotates:
            emit(1)
            expect_delivered()
            # These are on their way while the next hook is changed.
            emit(3)
        return answer

    # On a busy machine, a delivery may take long.
    fake.switches.timeout = 60
    deploy(site, OTHER_TAIL)
    site.run("apply", "--yes")
    fake.start_sending(0.001)
    emit(5)
    expect_delivered()
    emit(5)
    deploy(site, AUTHORIZATION, OTHER_TAIL)
    emit(5)
    expect_delivered()
    rotates.append(True)
    site.run("apply", "--rotate", "--yes")
    rotates.clear()
    emit(5)
    expect_delivered()
    deploy(site, AUTHORIZATION)
    emit(5)
    expect_delivered()
    fake.stop_sending()

    values = {hook["destination_headers"]["Authorization"] for hook in fake.hooks()}
    assert values == {AUTHORIZATION}
    assert [len(row["delivery_attempts"]) for row in fake.deliveries()] == [1] * len(
        fake.deliveries()
    )
    assert recorded(site) == sorted(emitted)
    assert len(emitted) > 80
