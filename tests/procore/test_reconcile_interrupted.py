"""``reconcile`` that is cut off: the journal has what was done until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from support.commands import run_apart

from flask_procore_webhooks import Event
from flask_procore_webhooks.dispatching.reconciling import reconcile_endpoint
from flask_procore_webhooks.hooks.insertion import AT_ONCE
from flask_procore_webhooks.hooks.report import Options


def numbers(mine: Integration) -> tuple[Any, Any]:
    """Missing and inserted events by the only entry of the journal."""
    (entry,) = mine.journal()
    return entry["expected"], entry["actual"]


def stop_after(number: int, error: type[BaseException]) -> Callable[[object], None]:
    """A function that raises the error when it is called that often."""
    left = number

    def called(_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error

    return called


def lose_on_days(mine: Integration, days: int) -> list[str]:
    """Days with 40 delivered and 10 lost events; return the lost ones, sorted."""
    hook, lost = mine.hook(), list[str]()
    for _ in range(days):
        mine.deliver(40)
        mine.is_down = True
        lost += mine.emit(10)
        mine.fake.deliver()
        mine.fake.discard(hook)
        mine.is_down = False
        mine.fake.advance(days=1)
    return sorted(lost)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_journal_has_what_was_inserted_before_an_interruption(
    make_app: MakeApp, database_url: str, error: type[BaseException]
) -> None:
    with integrated(make_app, database_url) as mine:
        lost = lose_on_days(mine, 4)
        # The last of the pages: that of all days, and one for each day.
        progress = stop_after(5, error)
        with mine.app.app_context(), pytest.raises(error):
            [*reconcile_endpoint(mine.endpoint, Options(), "me", progress)]
        assert mine.came_back == sorted(set(lost) & set(mine.came_back))
        assert numbers(mine) == (30, 30) == (len(mine.came_back),) * 2
        mine.report(code=2)
        assert mine.came_back == lost


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_journal_has_what_was_inserted_before_an_event_ends_an_inline_run(
    make_app: MakeApp, url: str, error: type[BaseException]
) -> None:
    with integrated(make_app, url, DISPATCH="inline") as mine:
        stop = stop_after(2, error)
        mine.webhooks.on("RFIs", "update", name="ends")(stop)
        mine.hook()
        mine.is_down = True
        lost = mine.lose(AT_ONCE + 20)
        result = run_apart(mine.app, "reconcile")
        assert result.exit_code == 1 or error is SystemExit
        assert numbers(mine) == (AT_ONCE + 20, AT_ONCE)
        assert len(mine.came_back) == AT_ONCE
        assert mine.report(code=2)["inserted"] == 20
        assert mine.came_back == lost


def test_subscriber_that_fails_in_an_inline_run_ends_nothing(
    make_app: MakeApp, url: str
) -> None:
    with integrated(make_app, url, DISPATCH="inline") as mine:

        @mine.webhooks.on("RFIs", "update", name="fails")
        def fails(event: Event) -> None:
            raise RuntimeError("the host's error")

        mine.hook()
        lost = mine.lose(3)
        assert mine.report(code=2)["inserted"] == 3
        assert mine.called == lost
        assert numbers(mine) == (3, 3)


def test_inline_run_has_run_each_part_before_the_next_is_inserted(
    make_app: MakeApp, url: str
) -> None:
    with integrated(make_app, url, DISPATCH="inline") as mine:
        there: list[int] = []
        mine.webhooks.on("RFIs", "update", name="counts")(
            lambda event: there.append(len(mine.rows()))
        )
        mine.hook()
        mine.lose(AT_ONCE + 1)
        mine.report(code=2)
        assert there == [AT_ONCE] * AT_ONCE + [AT_ONCE + 1]
