"""Bursts of deliveries: the fetches and the final state that each option promises.

``python -m bursts`` prints the same as a table; see the package ``bursts``.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from bursts.options import OPTION_SETS
from bursts.outcomes import Burst
from bursts.outcomes import Call
from bursts.outcomes import Outcome
from bursts.outcomes import overlaps
from bursts.plans import BURST_SECONDS
from bursts.plans import Change
from bursts.plans import FIELDS
from bursts.play import Play
from bursts.procore import Procore
from bursts.promises import broken
from bursts.scenarios import SCENARIOS
from bursts.table import BEGIN
from bursts.table import END
from bursts.table import put_into
from bursts.table import table
from support.documents import text_of
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL

#: How many times as fast as at Procore: ``lag=2`` becomes 0.5, the least that is taken.
FACTOR = 4.0
#: The same for the import, with ``settle=90``: longer than the workers need for it.
IMPORT_FACTOR = 6.0
#: The same for an import that has waited for workers for longer than ``settle``.
BACKLOG_FACTOR = 60.0

#: Plays side by side.
AT_ONCE = 3


@pytest.fixture
def seed() -> int:
    """The random seed; BURSTS_SEED repeats the plans of a failed test."""
    seed = int(os.environ.get("BURSTS_SEED") or random.randrange(10**6))
    print(f"BURSTS_SEED={seed}")
    return seed


def played(
    name: str,
    folder: Path,
    seed: int,
    *,
    service: tuple[str, str] | None = None,
    factor: float = FACTOR,
    options: tuple[str, ...] = (),
) -> list[Outcome]:
    """Play the scenario with each of its option sets, several side by side."""
    scenario = SCENARIOS[name]

    def play_one(each: str) -> Outcome:
        own = folder / each
        own.mkdir()
        file = f"sqlite:///{own / 'bursts.db'}"
        with own_database(*service) if service else nullcontext(file) as url:
            play = Play(scenario, OPTION_SETS[each], factor, seed, url, own)
            return play.run()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = [*pool.map(play_one, options or scenario.options)]
    print(table(outcomes))
    return outcomes


def check(outcomes: list[Outcome]) -> None:
    assert [text for outcome in outcomes for text in broken(outcome)] == []


# The promises


@pytest.mark.seldom("away", "own_timestamps", "one_timestamp", "deletion")
@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"fan_out", "backlog"}))
def test_each_option_keeps_its_promise(name: str, tmp_path: Path, seed: int) -> None:
    outcomes = played(name, tmp_path, seed)
    assert {each.options.name for each in outcomes} == {*SCENARIOS[name].options}
    check(outcomes)


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_each_option_keeps_its_promise_on_servers(
    server: str, tmp_path: Path, seed: int
) -> None:
    service = {"postgresql": POSTGRESQL, "mariadb": MARIADB}[server]
    check(played("stale", tmp_path, seed, service=service))


@pytest.mark.serial
@pytest.mark.slow
def test_an_import_of_2000_rows_costs_one_refresh(tmp_path: Path, seed: int) -> None:
    (outcome,) = played(
        "fan_out",
        tmp_path,
        seed,
        factor=IMPORT_FACTOR,
        options=("project",),
    )
    check([outcome])
    (burst,) = outcome.bursts
    assert (len(burst.events), len(burst.fetches)) == (2000, 1)


@pytest.mark.serial
@pytest.mark.slow
def test_an_import_that_has_waited_for_workers_costs_few_refreshes(
    tmp_path: Path, seed: int
) -> None:
    check(played("backlog", tmp_path, seed, factor=BACKLOG_FACTOR))


# The simulator


@pytest.mark.parametrize("name", ["one_timestamp", "own_timestamps", "stale"])
def test_bursts_have_2_to_5_events_within_7_seconds(name: str) -> None:
    for seed in range(200):
        plan = SCENARIOS[name].plan(random.Random(seed))
        by_resource: dict[str, list[float]] = {}
        for each in plan.deliveries:
            by_resource.setdefault(each.resource, []).append(each.at)
        for times in by_resource.values():
            assert 2 <= len(times) <= 5
            assert max(times) - min(times) < BURST_SECONDS + 0.5


def test_a_plan_follows_its_seed() -> None:
    for scenario in SCENARIOS.values():
        plans = [scenario.plan(random.Random(seed)) for seed in (1, 1, 2)]
        assert plans[0] == plans[1] != plans[2]


def test_every_update_is_delivered_before_its_create() -> None:
    plan = SCENARIOS["update_first"].plan(random.Random(1))
    seen = [(each.resource, each.reason) for each in plan.deliveries]
    for resource in {resource for resource, _ in seen}:
        assert seen.index((resource, "update")) < seen.index((resource, "create"))


def test_stale_reads_show_the_fields_one_after_the_other() -> None:
    procore = Procore(replace(SCENARIOS["stale"], stale=3.0), 1.0, 1)
    for at, version in ((0.0, 1), (10.0, 2)):
        fields = dict.fromkeys(FIELDS, version)
        procore.change(Change(at, "1", "7", fields))
    shown = [procore.visible("1", "7", now) for now in (9, 10.5, 11.5, 12.5, 13.5)]
    assert [sorted((each or {}).values()) for each in shown] == [
        [1, 1, 1],
        [1, 1, 1],
        [1, 1, 2],
        [1, 2, 2],
        [2, 2, 2],
    ]
    procore.change(Change(20, "1", "7", None))
    assert procore.visible("1", "7", 20) is None
    assert procore.of_project("1", 20) == {}


def test_overlapping_calls_are_counted() -> None:
    def call(began: float, ended: float) -> Call:
        return Call("1", "7", "evt", began, ended, True)

    assert overlaps([call(0, 2), call(2, 3), call(4, 5)]) == 0
    assert overlaps([call(4, 9), call(0, 2), call(1, 3), call(5, 6), call(7, 8)]) == 3


def outcome(options: str, *fetches: float, name: str = "stale") -> Outcome:
    """A burst of three events at 100, 101 and 102 s, and its fetches."""
    burst = Burst("4001", "3001", events={"a", "b", "c"}, fetches=[*fetches])
    burst.deliveries = [(99.99, 100.0), (100.99, 101.0), (101.99, 102.0)]
    return Outcome(SCENARIOS[name], OPTION_SETS[options], 1.0, [burst])


@pytest.mark.parametrize(
    "kept",
    [
        outcome("plain", 100.1, 101.1, 102.1),
        outcome("one_at_a_time", 100.1, 101.1, 102.1),
        outcome("latest_only", 100.1),
        outcome("lag", 100.9, 108.9),
        outcome("lag", 100.1),
        outcome("lag", 100.1, 108.1, 116.1, name="stream"),
        outcome("settle", 105.2),
        outcome("settle", 130.5, 133.5, name="stream"),
        outcome("project", 192.5),
        outcome("reread", 105.2, 160, 161, 162),
        outcome("project", *range(200, 208), name="backlog"),
    ],
    ids=lambda each: each.options.name,
)
def test_a_kept_promise_is_not_reported(kept: Outcome) -> None:
    assert broken(kept) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (outcome("plain"), "no fetch at all"),
        (outcome("plain", 100.1, 101.1), "2 fetches for 3 events"),
        (outcome("lag", 100.1, 102.2, 108.2), "3 fetches instead of at most two"),
        (outcome("lag", 101.2), "the first fetch came after 1.20 s"),
        (outcome("settle", 105.2, 106.0), "2 fetches instead of 1"),
        (outcome("settle", 104.0), "before settle was over"),
        (outcome("settle", 106.2), "after settle was over"),
        (outcome("settle", 131.2, name="stream"), "31.20 s after the first event"),
        (outcome("project", 192.5, 200.0), "2 fetches instead of 1"),
        (outcome("project", *range(200, 209), name="backlog"), "9 fetches by 8 thr"),
        (outcome("reread", 105.2, 106, 160, 161, 162), "2 fetches instead of 1"),
    ],
)
def test_a_broken_promise_is_reported(wrong: Outcome, said: str) -> None:
    (text,) = broken(wrong)
    assert said in text


@pytest.mark.parametrize(
    ("options", "name", "is_promised"),
    [
        ("plain", "own_timestamps", True),
        ("plain", "stale", False),
        ("one_at_a_time", "stale", False),
        ("lag", "stale", True),
        ("settle", "stale", True),
        ("reread", "stale", True),
        ("lag", "away", True),
    ],
)
def test_the_final_state_is_part_of_the_promise(
    options: str, name: str, is_promised: bool
) -> None:
    each = outcome(options, 105.2, name=name)
    each.bursts[0].wrong = ["4001"]
    found = [text for text in broken(each) if "final state of 4001" in text]
    assert bool(found) == is_promised
    # Of two calls at the same time, the one that fetched first may write last.
    each.bursts[0].races = 1
    is_excused = options in ("plain", "settle")
    found = [text for text in broken(each) if "final state of 4001" in text]
    assert bool(found) == (is_promised and not is_excused)


def test_a_gap_of_settle_divides_a_burst() -> None:
    each = outcome("settle", 104.1, 113.1)
    each.bursts[0].deliveries[1:] = [(100.5, 101.0), (109.9, 110.0)]
    assert broken(each) == []
    each.bursts[0].deliveries[2] = (103.3, 103.4)
    assert "2 fetches instead of 1" in broken(each)[0]


def test_overlaps_fetches_and_unfinished_events_break_promises() -> None:
    each = outcome("one_at_a_time", 100.1, 101.1, 102.1)
    each.bursts[0].overlaps = 2
    each.unfinished = {"dead": 1}
    assert [text.partition(": ")[2] for text in broken(each)] == [
        "1 events are dead at the end",
        "2 calls began while another ran",
    ]
    each = outcome("when", 100.1)
    each.bursts[0].is_wanted = False
    assert "1 fetches of what when= excludes" in broken(each)[0]


def test_the_table_goes_into_its_place_in_a_document(tmp_path: Path) -> None:
    outcomes = [outcome("plain", 100.1, 101.1, 102.1), outcome("settle", 105.2)]
    outcomes[1].bursts[0].wrong = ["4001"]
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    put_into(page, table(outcomes))
    about = SCENARIOS["stale"].about
    assert page.read_text() == (
        f"before\n\n{BEGIN}\n\n"
        "| scenario | options | fetches | first fetch | final state |\n"
        "| --- | --- | --- | --- | --- |\n"
        f"| {about} | no options | 3 | 0.1 s | right |\n"
        "|  | `latest_only=True, settle=3` | 1 | 5.2 s | old in 1 of 1 |\n"
        f"\n{END}\n\nafter\n"
    )
    page.write_text(text_of("docs/bursts.md"))
    put_into(page, table(outcomes))
    assert f"| {about} | no options | 3 |" in page.read_text()
    page.write_text("without marks")
    with pytest.raises(ValueError, match="has no lines"):
        put_into(page, "")


@pytest.mark.slow
def test_plain_subscribers_store_an_old_state_of_stale_reads(
    tmp_path: Path, seed: int
) -> None:
    """The play can tell a wrong final state from a right one."""
    start = time.time()
    (stale,) = played("stale", tmp_path, seed, options=("plain",))
    assert stale.wrong
    assert broken(stale) == []
    assert all(burst.fetches[0] > start for burst in stale.bursts)
