"""When a failed run is repeated, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.config.values import MOST
from flask_procore_webhooks.running.failures import backoff
from flask_procore_webhooks.running.failures import longest_backoff
from flask_procore_webhooks.running.failures import LONGEST_WAIT

DAY = 24 * 3600.0


def time_to_dead(settings: Settings) -> float:
    """The sum of the longest waits of an event that always fails."""
    return sum(longest_backoff(n, settings) for n in range(1, settings.max_attempts))


def test_longest_wait_doubles_up_to_the_cap() -> None:
    found = [longest_backoff(attempt, Settings()) for attempt in range(1, 13)]
    assert found == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


@given(
    st.integers(1, 10**12),
    st.floats(0, MOST, exclude_min=True),
    st.floats(0, MOST, exclude_min=True),
)
def test_wait_is_between_half_and_the_whole(
    attempt: int, base: float, cap: float
) -> None:
    settings = Settings(retry_base=base, retry_cap=cap)
    longest = longest_backoff(attempt, settings)
    assert 0 < longest <= min(cap, LONGEST_WAIT)
    assert longest / 2 <= backoff(attempt, settings) <= longest


@pytest.mark.parametrize("attempt", [1, 4, 11, 56])
def test_waits_of_one_attempt_are_spread(attempt: int) -> None:
    """Events that failed together are not repeated together."""
    longest = longest_backoff(attempt, Settings())
    waits = sorted(backoff(attempt, Settings()) / longest for _ in range(2000))
    assert 0.5 <= waits[0] < 0.51 and 0.99 < waits[-1] <= 1
    assert 0.72 < sum(waits) / len(waits) < 0.78


def test_default_attempts_are_the_fewest_that_outlast_a_day() -> None:
    assert time_to_dead(Settings()) / 2 >= DAY
    fewer = Settings(max_attempts=Settings.max_attempts - 1)
    assert time_to_dead(fewer) / 2 < DAY
