"""Hours of deliveries in every mode: lost events, and pauses of the sender."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.hosts import do_not_sync
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import jobs
from support.senders import HOUR
from support.senders import Outage
from support.senders import Procore
from support.senders import Prudra
from support.senders import Queued
from support.senders import shuffled
from support.senders import World
from support.values import AUTHORIZATION
from support.values import Clock

from flask_procore_webhooks import Event
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
MODES = ("background", "worker", "inline")
OTHERS = MODES[:2]
NO_JSON = b"\xff{"


@dataclass
class Scene:
    """A day of an app whose subscriber performs the event's ``task``."""

    host: Host
    world: World
    mode: str
    hook: Procore
    #: Event id to task, for the events of the stream.
    tasks: dict[str, str] = field(default_factory=dict)

    def stream(self, count: int = 40, **tasks: int) -> list[tuple[float, bytes]]:
        """Bodies, one a minute; ``fails=4`` gives event number 4 the task ``fails``."""
        by_number = {number: task for task, number in tasks.items()}
        stream = []
        for number in range(count):
            id, task = f"evt_{number}", by_number.get(number, "quick")
            self.tasks[id] = task
            body = payload("RFIs.update", format="v4", id=id, task=task)
            stream.append((number * 60.0, to_bytes(body)))
        return stream

    def rows(self) -> dict[str, Any]:
        found = queries.newest(self.host.endpoint.store, limit=1000)
        return {row["event_id"]: row for row in found}

    def attempts(self, id: str) -> int:
        """Of the job of the event that has most."""
        found = jobs(self.host.endpoint.store, id).values()
        return max((job["attempts"] for job in found), default=0)

    def check_nothing_is_lost(self) -> None:
        """Assert: each event is dead, or done with one effect; none was discarded."""
        assert self.hook.discarded == []
        rows = self.rows()
        assert {*self.tasks} <= {*rows}
        failing = {id for id, task in self.tasks.items() if task == "fails"}
        for id in {*self.tasks}:
            row = rows[id]
            if id in failing:
                assert (row["status"], self.attempts(id)) == ("dead", 12)
                assert "it always fails" in row["error"]
            else:
                assert (row["status"], row["error"]) == ("done", None)
        assert self.effects() == Counter({*self.tasks} - failing)

    def effects(self) -> Counter[str]:
        return Counter(note.split()[0] for note in self.host.notes())

    def longest_wait(self) -> float:
        """Longest time in seconds from an event to the end of its last delivery."""
        return max(each.seconds for each in self.hook.delivered)


@pytest.fixture
def scene(make_app: MakeApp, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    with _scenes(make_app, f"sqlite:///{tmp_path / 'host.db'}") as scene:
        yield scene


@contextmanager
def _scenes(make_app: MakeApp, url: str) -> Iterator[Callable[..., Scene]]:
    """Yield a function that sets up the test's scene."""
    made: list[Any] = []

    def scene(mode: str, *, limit: float | None = None, **config: Any) -> Scene:
        # So few that in the mode inline an event is dead before the sender gives up.
        keys = {"DISPATCH": "inline" if mode == "inline" else "worker"}
        keys |= {"MAX_ATTEMPTS": 12, **config}
        named = {f"PROCORE_WEBHOOK_{key}": value for key, value in keys.items()}
        app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION, **named)
        made.append(run_host(app, "flask_sqlalchemy", url))
        host = made[0].__enter__()
        do_not_sync(host.engine)
        clock = host.endpoint.store.now = Clock()
        world = World(app, clock, limit)
        world.runs(mode)

        @host.webhooks.on(name="works")
        def works(event: Event) -> None:
            task = event.data["task"]
            if task == "hour":
                world.sleep(HOUR)
            host.note(f"{event.id} {event.attempt} {clock()}")
            if task == "fails":
                raise RuntimeError("it always fails")

        return Scene(host, world, mode, Procore(world))

    try:
        yield scene
    finally:
        for each in made:
            each.__exit__(None, None, None)


# Every mode but inline: a failing event does not delay others


@pytest.mark.parametrize("mode", OTHERS)
def test_failing_subscriber_does_not_delay_other_events(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    day.hook.sends(day.stream(fails=4))
    day.world.run_for(24 * HOUR)

    day.check_nothing_is_lost()
    assert day.hook.pauses == []
    assert all(each.statuses == [200] for each in day.hook.delivered)
    assert day.longest_wait() == 0


@pytest.mark.parametrize("mode", OTHERS)
def test_hour_long_subscriber_does_not_delay_deliveries(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    day.hook.sends(day.stream(hour=4))
    day.world.run_for(24 * HOUR)

    day.check_nothing_is_lost()
    assert day.hook.pauses == []
    assert all(each.statuses == [200] for each in day.hook.delivered)
    assert day.longest_wait() == 0
    rows = day.rows()
    slow = rows["evt_4"]
    assert day.attempts("evt_4") == 1, "its lease was renewed"
    taken = slow["finished_at"] - slow["received_at"]
    assert HOUR <= taken.total_seconds() < HOUR + 60
    next_one = rows["evt_5"]["finished_at"] - rows["evt_5"]["received_at"]
    if mode == "worker":
        assert next_one.total_seconds() <= 2, "the other worker is free"
    else:
        assert next_one.total_seconds() > 0.9 * HOUR, "there is one thread"


@pytest.mark.parametrize("mode", MODES)
def test_body_without_json_is_quarantined_and_does_not_delay_other_events(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    day.hook.sends([*day.stream(), (90.0, NO_JSON)])
    day.world.run_for(HOUR)

    day.check_nothing_is_lost()
    assert all(each.statuses == [200] for each in day.hook.delivered)
    (poison,) = (row for id, row in day.rows().items() if id not in day.tasks)
    assert poison["status"] == "quarantined"
    assert jobs(day.host.endpoint.store, poison["event_id"]) == {}
    kept = queries.find(day.host.endpoint.store, poison["event_id"])
    assert kept and kept["body"] == NO_JSON


@pytest.mark.parametrize("mode", MODES)
def test_shuffled_copies_are_recorded_once(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    copies = shuffled(day.stream(), random.Random(11))
    day.hook.sends(copies)
    day.world.run_for(6 * HOUR)

    day.check_nothing_is_lost()
    assert day.hook.pauses == []
    assert len(day.hook.delivered) == len(copies) > 60
    repeats = sum(row["repeats"] for row in day.rows().values())
    assert repeats == len(copies) - len(day.tasks)


@pytest.mark.parametrize("mode", MODES)
def test_outage_below_12_hours_loses_no_event(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    day.hook.sends(day.stream(60))
    Outage(day.world, 600, 10 * HOUR)
    day.world.run_for(24 * HOUR)

    day.check_nothing_is_lost()
    (pause,) = day.hook.pauses
    # The pause ends with the first attempt after the outage, within an hour.
    assert 10 * HOUR - 600 <= pause <= 11 * HOUR
    answers = [status for each in day.hook.delivered for status in each.statuses]
    assert {*answers} == {200, 503}


@pytest.mark.slow
@pytest.mark.parametrize("mode", OTHERS)
def test_all_disturbances_in_one_day_lose_no_event(
    scene: Callable[..., Scene], mode: str
) -> None:
    day = scene(mode)
    _all_of_it(day)


@pytest.mark.soak
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_all_disturbances_lose_no_event_on_database_servers(
    make_app: MakeApp, request: pytest.FixtureRequest, database: str
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    with _scenes(make_app, url) as scene:
        _all_of_it(scene("worker"), count=20)


def _all_of_it(day: Scene, count: int = 60) -> None:
    stream = shuffled(day.stream(count, hour=7, fails=3), random.Random(5))
    day.hook.sends([*stream, (120.0, NO_JSON), (4000.0, NO_JSON)])
    # One outage during the hour of sleep, one after it.
    Outage(day.world, 1800, 3000)
    Outage(day.world, 5 * HOUR, 9 * HOUR)
    day.world.run_for(40 * HOUR)

    day.check_nothing_is_lost()
    assert all(
        status in (200, 503) for each in day.hook.delivered for status in each.statuses
    )


# The sender's limit of 12 hours, in every mode


@pytest.mark.parametrize("mode", MODES)
def test_outage_over_12_hours_loses_the_queued_events(
    scene: Callable[..., Scene], mode: str
) -> None:
    """A check of the simulation: its sender can lose events."""
    day = scene(mode)
    day.hook.sends(day.stream(60))
    # The inbox is away when the eleventh event is sent.
    Outage(day.world, 590, 14 * HOUR)
    day.world.run_for(24 * HOUR)

    assert [each.seconds for each in day.hook.discarded[:1]] == [12 * HOUR]
    assert len(day.hook.discarded) == 50
    assert len(day.rows()) == 10


# Inline: the sender waits for the subscribers


def test_inline_an_event_that_always_fails_stops_the_hook_until_it_is_dead(
    scene: Callable[..., Scene],
) -> None:
    day = scene("inline")
    day.hook.sends(day.stream(60, fails=4))
    day.world.run_for(24 * HOUR)

    day.check_nothing_is_lost()
    (failing,) = (each for each in day.hook.delivered if len(each.answers) > 1)
    assert failing.statuses == [500] * 11 + [200]
    # 1 + 2 + 4 + ... + 1024 s: 34 minutes.
    assert day.hook.pauses == [2047]
    held_up = [each.seconds for each in day.hook.delivered if each.seconds > 0]
    assert len(held_up) == 1 + 2047 // 60


def test_inline_with_more_attempts_than_fit_in_12_hours_the_queue_is_discarded(
    scene: Callable[..., Scene],
) -> None:
    day = scene("inline", MAX_ATTEMPTS=100)
    day.hook.sends(day.stream(60, fails=4))
    day.world.run_for(24 * HOUR)

    failing, *others = day.hook.discarded
    assert len(failing.answers) == 23 and {*failing.statuses} == {500}
    assert len(others) == 55 and not any(each.answers for each in others)
    assert {*day.rows()} == {f"evt_{number}" for number in range(5)}
    assert day.rows()["evt_4"]["status"] == "pending", "not delivered again"


def test_inline_after_the_queue_was_discarded_the_next_event_flows(
    scene: Callable[..., Scene],
) -> None:
    day = scene("inline", MAX_ATTEMPTS=100)
    stream = day.stream(60, fails=4)
    late = to_bytes(payload("RFIs.update", format="v4", id="late", task="quick"))
    day.hook.sends([*stream, (13 * HOUR, late)])
    day.world.run_for(24 * HOUR)

    assert len(day.hook.discarded) == 56
    assert day.rows()["late"]["status"] == "done"


def test_inline_an_hour_of_work_stops_the_hook_for_longer_than_that(
    scene: Callable[..., Scene],
) -> None:
    day = scene("inline")
    day.hook.sends(day.stream(90, hour=4))
    day.world.run_for(24 * HOUR)

    day.check_nothing_is_lost()
    assert day.attempts("evt_4") == 1
    (slow,) = (each for each in day.hook.delivered if len(each.answers) > 1)
    first, *between, last = slow.statuses
    assert (first, last) == (None, 200)
    assert between and {*between} == {503}, "the first request is running it still"
    # The first retry after that hour: 1 + 2 + 4 + ... + 2048 s.
    assert day.hook.pauses == [4095]


@pytest.mark.parametrize(
    "attempts, lost", [(12, 0), (100, 56)], ids=["12 attempts", "100 attempts"]
)
def test_inline_an_hour_of_work_where_the_server_kills_long_requests(
    scene: Callable[..., Scene], attempts: int, lost: int
) -> None:
    day = scene("inline", limit=30.0, MAX_ATTEMPTS=attempts)
    day.hook.sends(day.stream(60, hour=4))
    day.world.run_for(24 * HOUR)

    row = day.rows()["evt_4"]
    assert len(day.hook.discarded) == lost
    assert day.effects()["evt_4"] == 0
    if lost:
        assert row["status"] == "pending"
    else:
        assert row["status"] == "dead"
        assert len(day.rows()) == 60


# Prudra


@pytest.fixture
def prudra(make_app: MakeApp) -> Callable[..., World]:
    def prudra(**config: Any) -> World:
        keys = {"SECRET": "a secret", "DISPATCH": "worker", "MAX_ATTEMPTS": 12}
        keys = {**keys, **config}
        app = make_app(**{f"PRUDRA_WEBHOOK_{key}": v for key, v in keys.items()})
        app.register_blueprint(PrudraWebhooks())
        (endpoint,) = endpoints(app).values()
        clock = endpoint.store.now = Clock()
        # Signatures contain whole seconds.
        clock.time = clock.time.replace(microsecond=0)
        # An outage that starts at once needs the tables.
        endpoint.store.database.create_tables()
        return World(app, clock)

    return prudra


def _payment() -> bytes:
    return to_bytes(payload("payment.received", format="prudra"))


def _offsets(queued: Queued) -> list[float]:
    return [(at - queued.happened).total_seconds() for at, _ in queued.answers]


@pytest.mark.parametrize("resigns", [True, False], ids=["signed anew", "signed once"])
def test_prudra_delivers_after_an_outage_of_two_minutes(
    prudra: Callable[..., World], resigns: bool
) -> None:
    world = prudra()
    Outage(world, 0, 120)
    event = Prudra(world, _payment(), resigns=resigns)
    world.runs("worker")
    world.run_for(HOUR)

    assert event.queued.statuses == [503] * 5 + [200]
    assert _offsets(event.queued) == [0, 5, 15, 35, 75, 155]
    (row,) = queries.newest(world.endpoint.store)
    assert row["status"] == "unmatched", "it has run, without subscribers"


@pytest.mark.parametrize("resigns", [True, False], ids=["signed anew", "signed once"])
def test_prudra_retries_beyond_the_tolerance_need_a_new_signature(
    prudra: Callable[..., World], resigns: bool
) -> None:
    world = prudra(TOLERANCE=60)
    Outage(world, 0, 60)
    event = Prudra(world, _payment(), resigns=resigns)
    world.run_for(HOUR)

    refused = [] if resigns else [401, 401]
    accepted = [200] if resigns else []
    assert event.queued.statuses == [503] * 4 + refused + accepted
    assert len(event.discarded) == (0 if resigns else 1)
    assert len(queries.newest(world.endpoint.store)) == len(accepted)


@pytest.mark.parametrize("resigns", [True, False], ids=["signed anew", "signed once"])
def test_abandoned_prudra_event_is_accepted_later_if_signed_again(
    prudra: Callable[..., World], resigns: bool
) -> None:
    world = prudra()
    Outage(world, 0, 300)
    event = Prudra(world, _payment(), resigns=resigns)
    world.run_for(HOUR)
    assert event.discarded and event.queued.statuses == [503] * 6

    event.replay()
    world.run_for(60)

    assert event.queued.statuses[6:] == [200 if resigns else 401]
    assert len(event.discarded) == (0 if resigns else 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["fails", "sleeps"])
def test_prudra_abandons_events_only_with_inline_dispatch(
    prudra: Callable[..., World], mode: str, task: str
) -> None:
    dispatch = "inline" if mode == "inline" else "worker"
    world = prudra(DISPATCH=dispatch, MAX_ATTEMPTS=12)
    (blueprint,) = world.app.blueprints.values()
    assert isinstance(blueprint, PrudraWebhooks)

    @blueprint.on(name="works")
    def works(event: Event) -> None:
        if task == "fails":
            raise RuntimeError("it always fails")
        world.sleep(HOUR)

    world.runs(mode)
    event = Prudra(world, _payment())
    other = Prudra(world, NO_JSON, after=1.0)
    world.run_for(24 * HOUR)

    (row,) = (r for r in queries.newest(world.endpoint.store) if r["type"])
    if mode == "inline":
        assert event.discarded == [event.queued]
        no_answers: list[Any] = [500] * 6 if task == "fails" else [None] + [503] * 5
        assert event.queued.statuses == no_answers
        assert row["status"] == ("pending" if task == "fails" else "done")
    else:
        assert event.queued.statuses == [200]
        assert row["status"] == ("dead" if task == "fails" else "done")
    assert other.queued.statuses == [200], "others do not wait behind it"
