"""Writer: a lone call runs itself, calls that arrive meanwhile form a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.waiting import wait_until

from flask_procore_webhooks.storage import writer as module
from flask_procore_webhooks.storage.writer import LARGEST_BATCH
from flask_procore_webhooks.storage.writer import Writer


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


class HangingAtZero:
    """Returns the numbers of each batch; those of ``[0]`` as soon as ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.hangs = threading.Event()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        if items == [0]:
            self.hangs.set()
            assert self.go.wait(30)
        return list(items)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even on a slow machine, no batch is taken for a hanging one."""
    monkeypatch.setattr(module, "LONGEST_WAIT", 60)
    monkeypatch.setattr(module, "LONGEST_CALL", 60)


def all_waiting(writer: Writer[Any, Any], number: int) -> None:
    wait_until(lambda: len(writer._waiting) >= number)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


def test_single_call_is_a_batch_of_one() -> None:
    work = Work()
    work.go.set()
    writer = Writer(work)
    assert [writer(1), writer(2)] == [2, 4]
    assert work.groups == [[1], [2]]


def test_calls_during_a_batch_form_the_next_batch() -> None:
    work = Work()
    writer = Writer(work)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(writer, 0)
        assert work.started.wait(30)
        others = [pool.submit(writer, number) for number in range(1, 8)]
        all_waiting(writer, 7)
        work.go.set()
        results = [each.result(30) for each in (first, *others)]
    assert results == [2 * number for number in range(8)]
    assert work.groups[0] == [0]
    assert [sorted(group) for group in work.groups[1:]] == [list(range(1, 8))]


def test_exception_is_raised_only_by_the_call_it_belongs_to() -> None:
    work = Work()
    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer, 0)
        assert work.started.wait(30)
        others = [pool.submit(writer, number) for number in (1, -1, 2)]
        all_waiting(writer, 3)
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

    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer, 0)
        assert entered.wait(30)
        others = [pool.submit(outcome, lambda n=n: writer(n)) for n in (1, 2, 3)]
        all_waiting(writer, 3)
        go.set()
        found = [each.result(30) for each in (first, *others)]
    late = [each for each in found if isinstance(each, ValueError)]
    assert len(late) == 1 and len({*found} & {0, 1, 2, 3}) == 3
    assert sorted(batches[1]) == [1, 2, 3]


def test_batch_size_is_limited() -> None:
    work = Work()
    writer = Writer(work)
    with ThreadPoolExecutor(LARGEST_BATCH + 11) as pool:
        first = pool.submit(writer, 0)
        assert work.started.wait(30)
        others = [pool.submit(writer, number) for number in range(LARGEST_BATCH + 10)]
        all_waiting(writer, LARGEST_BATCH + 10)
        work.go.set()
        assert first.result(30) == 0
        for number, each in enumerate(others):
            assert each.result(30) == 2 * number
    assert [len(group) for group in work.groups] == [1, LARGEST_BATCH, 10]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_interrupted_call_leaves_its_place_to_the_next(
    kind: type[BaseException],
) -> None:
    entered = threading.Event()

    def work(items: list[int]) -> list[int | Exception]:
        if items == [0]:
            entered.set()
            all_waiting(writer, 3)
            raise kind
        return list(items)

    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(outcome, lambda: writer(0))
        assert entered.wait(30)
        others = [pool.submit(writer, number) for number in (1, 2, 3)]
        assert isinstance(first.result(30), kind)
        assert [each.result(30) for each in others] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_calls_of_an_interrupted_thread_are_in_another_batch() -> None:
    batches: list[list[int]] = []
    entered = threading.Event()

    def work(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        if len(batches) == 1:
            entered.set()
            all_waiting(writer, 3)
        if len(batches) == 2:
            raise SystemExit
        return list(items)

    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(writer, 0)]
        assert entered.wait(30)
        calls += [pool.submit(writer, number) for number in (1, 2, 3)]
        assert [each.result(30) for each in calls] == [0, 1, 2, 3]
    assert sorted(batches[1]) == [1, 2, 3]
    assert sorted(sum(batches[2:], [])) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_call_whose_batches_are_all_interrupted_ends_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONGEST_CALL", 0.2)
    entered, go = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int | Exception]:
        entered.set()
        assert go.wait(30)
        if threading.current_thread() is waiting:
            return list(items)
        raise SystemExit

    writer = Writer(work)
    waiting = threading.current_thread()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcome, lambda: writer(0))
        assert entered.wait(30)
        second = pool.submit(outcome, lambda: writer(1))
        all_waiting(writer, 1)
        time.sleep(0.3)  # longer than LONGEST_CALL
        go.set()
        assert isinstance(first.result(30), SystemExit)
        assert isinstance(second.result(30), (TimeoutError, SystemExit))
    assert writer(2) == 2


def test_calls_behind_a_hanging_batch_are_run_by_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls in the hanging batch get an error while it still hangs."""
    monkeypatch.setattr(module, "LONGEST_WAIT", 2.0)
    monkeypatch.setattr(module, "LONGEST_CALL", 4.5)
    hang, hanging = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        if len(batches) == 1:
            # The next batch, which hangs, has several calls.
            all_waiting(writer, 3)
        elif len(batches) == 2:
            hanging.set()
            assert hang.wait(30)
        return list(items)

    writer = Writer(work)
    with ThreadPoolExecutor(8) as pool:
        calls = {pool.submit(writer, 0): 0}
        wait_until(lambda: bool(batches))
        calls |= {pool.submit(writer, number): number for number in (1, 2, 3)}
        assert hanging.wait(30)
        calls |= {pool.submit(writer, number): number for number in (4, 5, 6)}
        done = list(as_completed(calls, 30))
        assert not hang.is_set() and len(done) == 7
        hang.set()
    results = {number: outcome(call.result) for call, number in calls.items()}
    assert [type(results.pop(number)) for number in (1, 2, 3)] == [TimeoutError] * 3
    assert results == {number: number for number in (0, 4, 5, 6)}
    assert writer(9) == 9
    assert batches[-1] == [9]


def test_calls_behind_a_hanging_caller_are_run_by_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.3)
    work = HangingAtZero()
    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer, 0)
        assert work.hangs.wait(30)
        # The thread waits when the first of them replaces it.
        others = [pool.submit(writer, number) for number in (1, 2, 3)]
        assert [each.result(30) for each in others] == [1, 2, 3]
        assert [writer(4), writer(5)] == [4, 5]
        work.go.set()
        assert first.result(30) == 0


def test_calls_behind_a_hanging_caller_run_themselves_without_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.3)
    work = HangingAtZero()
    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer, 0)
        assert work.hangs.wait(30)
        others = [pool.submit(writer, number) for number in (1, 2, 3)]
        all_waiting(writer, 3)
        monkeypatch.setattr(module, "has_threads", lambda: False)
        assert [each.result(30) for each in others] == [1, 2, 3]
        work.go.set()
        assert first.result(30) == 0


def test_queued_calls_end_in_time_when_two_batches_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.3)
    monkeypatch.setattr(module, "LONGEST_CALL", 1.0)
    work = Work()
    writer = Writer(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer, 0)
        assert work.started.wait(30)
        others = [pool.submit(outcome, lambda n=n: writer(n)) for n in (1, 2, 3)]
        found = [each.result(30) for each in others]
        assert [type(each) for each in found] == [TimeoutError] * 3
        work.go.set()
        assert first.result(30) == 0
    assert writer(5) == 10


def test_without_a_thread_each_caller_runs_its_own_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uWSGI runs no threads unless it is told to."""
    monkeypatch.setattr(module, "has_threads", lambda: False)
    both = threading.Barrier(2, timeout=30)

    def work(items: list[int]) -> list[int | Exception]:
        both.wait()
        return list(items)

    writer = Writer(work)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(writer, number) for number in (1, 2)]
        assert [each.result(30) for each in calls] == [1, 2]


def test_thread_ends_once_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.05)
    work = Work()
    writer = Writer(work)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            work.started.clear()
            work.go.clear()
            first = pool.submit(writer, 0)
            assert work.started.wait(30)
            second = pool.submit(writer, 1)
            all_waiting(writer, 1)
            thread = writer._thread
            work.go.set()
            assert (first.result(30), second.result(30)) == (0, 2)
            assert thread is not None
            thread.join(30)
            assert writer._thread is None
