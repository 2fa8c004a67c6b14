"""Group commit: calls that arrive while a batch runs form the next batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import as_completed
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from support.waiting import wait_until

from flask_procore_webhooks.inbox import group_commit
from flask_procore_webhooks.inbox.group_commit import GroupCommit
from flask_procore_webhooks.inbox.group_commit import LARGEST_BATCH


class Work:
    """Doubles the numbers of each batch, as soon as ``go`` is set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.groups.append(items)
        self.started.set()
        assert self.go.wait(30)
        return [ValueError(str(i)) if i < 0 else 2 * i for i in items]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even on a slow machine, no call starts a batch beside a running batch."""
    monkeypatch.setattr(group_commit, "LONGEST_WAIT", 60)
    monkeypatch.setattr(group_commit, "LONGEST_CALL", 60)


def all_waiting(grouped: GroupCommit[Any, Any], number: int) -> None:
    wait_until(lambda: len(grouped._waiting) >= number)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


def test_single_call_is_a_batch_of_one() -> None:
    work = Work()
    work.go.set()
    grouped = GroupCommit(work)
    assert [grouped(1), grouped(2)] == [2, 4]
    assert work.groups == [[1], [2]]


def test_calls_during_a_batch_form_the_next_batch() -> None:
    work = Work()
    grouped = GroupCommit(work)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in range(1, 8)]
        all_waiting(grouped, 7)
        work.go.set()
        results = [each.result(30) for each in (first, *others)]
    assert results == [2 * number for number in range(8)]
    assert work.groups[0] == [0]
    assert [sorted(group) for group in work.groups[1:]] == [list(range(1, 8))]


def test_exception_is_raised_only_by_the_call_it_belongs_to() -> None:
    work = Work()
    grouped = GroupCommit(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in (1, -1, 2)]
        all_waiting(grouped, 3)
        work.go.set()
        assert first.result(30) == 0
        found = [outcome(each.result) for each in others]
    assert (found[0], found[2]) == (2, 4)
    assert isinstance(found[1], ValueError)


def test_call_without_an_outcome_is_put_into_another_batch() -> None:
    """The batch had no time left, and this call has."""
    batches: list[list[int]] = []
    entered, go = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int | Exception | None]:
        batches.append(items)
        if len(batches) == 1:
            entered.set()
            assert go.wait(30)
        if len(batches) == 2:
            return [ValueError("late"), *[None] * (len(items) - 1)]
        return list(items)

    grouped = GroupCommit(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert entered.wait(30)
        others = [pool.submit(outcome, lambda n=n: grouped(n)) for n in (1, 2, 3)]
        all_waiting(grouped, 3)
        go.set()
        found = [each.result(30) for each in (first, *others)]
    late = [each for each in found if isinstance(each, ValueError)]
    assert len(late) == 1 and len({*found} & {0, 1, 2, 3}) == 3
    assert sorted(batches[1]) == [1, 2, 3]


def test_batch_size_is_limited() -> None:
    work = Work()
    grouped = GroupCommit(work)
    with ThreadPoolExecutor(LARGEST_BATCH + 11) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in range(LARGEST_BATCH + 10)]
        all_waiting(grouped, LARGEST_BATCH + 10)
        work.go.set()
        assert first.result(30) == 0
        for number, each in enumerate(others):
            assert each.result(30) == 2 * number
    assert [len(group) for group in work.groups] == [1, LARGEST_BATCH, 10]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_interrupted_leader_is_replaced(
    kind: type[BaseException],
) -> None:
    interrupted: list[int] = []
    led = threading.Event()

    def work(items: list[int]) -> list[int | Exception]:
        if 0 in items:
            led.set()
            all_waiting(grouped, 3)
            return list(items)
        if not interrupted:
            interrupted.extend(items)
            raise kind
        return list(items)

    grouped = GroupCommit(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert led.wait(30)
        others = [pool.submit(outcome, lambda n=n: grouped(n)) for n in (1, 2, 3)]
        assert first.result(30) == 0
        found = [each.result(30) for each in others]
    assert sorted(interrupted) == [1, 2, 3]
    # One call was interrupted; the remaining calls were completed.
    assert len([each for each in found if isinstance(each, kind)]) == 1
    assert {each for each in found if isinstance(each, int)} < {1, 2, 3}
    assert len([each for each in found if isinstance(each, int)]) == 2
    assert grouped(5) == 5


def test_calls_behind_a_hanging_batch_start_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls in the hanging batch get an error while its leader still hangs."""
    monkeypatch.setattr(group_commit, "LONGEST_WAIT", 2.5)
    monkeypatch.setattr(group_commit, "LONGEST_CALL", 4.5)
    hang, hanging = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        if len(batches) == 1:
            # The next batch, which hangs, has several calls.
            all_waiting(grouped, 3)
        elif len(batches) == 2:
            hanging.set()
            assert hang.wait(30)
        return list(items)

    grouped = GroupCommit(work)
    with ThreadPoolExecutor(8) as pool:
        calls = {pool.submit(grouped, number): number for number in range(4)}
        assert hanging.wait(30)
        calls |= {pool.submit(grouped, number): number for number in range(4, 7)}
        done = list(islice(as_completed(calls, 30), 6))
        hang.set()
        results = {number: outcome(call.result) for call, number in calls.items()}
    leader, *others = batches[1]
    assert len(done) == 6, "all calls but the hanging leader"
    assert [type(results.pop(number)) for number in others] == [TimeoutError] * 2
    assert results == {number: number for number in results}
    assert leader in results and len(results) == 5
    assert grouped(9) == 9
    assert batches[-1] == [9]


def test_queued_call_times_out_when_two_leaders_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "LONGEST_WAIT", 0.3)
    monkeypatch.setattr(group_commit, "LONGEST_CALL", 2.3)
    work = Work()
    grouped = GroupCommit(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in (1, 2, 3)]
        told = list(islice(as_completed(others, 30), 2))
        assert [type(each.exception()) for each in told] == [TimeoutError] * 2
        work.go.set()
        (second,) = [each for each in others if each not in told]
        assert (first.result(30), second.result(30) in (2, 4, 6)) == (0, True)
    assert grouped(5) == 10
