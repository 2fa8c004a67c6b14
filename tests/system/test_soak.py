"""Short runs of the soak: no event is lost, doubled or late.

``make soak`` does the same for longer; see the package ``soak``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from soak.kinds import Options
from soak.kinds import run

#: Each kind of disturbance, and each database; ``make soak`` has all of them.
SHORT_RUNS = (
    "sqlite background",
    "postgresql preload",
    "mariadb uwsgi",
    "postgresql connections",
    "mariadb outage",
    "sqlite full",
)


@pytest.fixture
def seed() -> int:
    """The random seed; SOAK_SEED repeats the seeded choices of a failed run."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    print(f"SOAK_SEED={seed}")
    return seed


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT_RUNS)
def test_disturbances_lose_double_and_delay_nothing(
    name: str, tmp_path: Path, seed: int
) -> None:
    database, kind = name.split()
    short = Options(tmp_path, seed, seconds=240, events=60, kills=3, ends=12, outages=1)
    result = run(database, kind, short)
    if result is None:
        pytest.skip("not possible here")
    assert not result.problems, f"seed {seed}: {result.problems}"
    assert result.events and result.kills
    if kind in ("outage", "full"):
        assert result.unavailable
        assert result.restarts == 0
