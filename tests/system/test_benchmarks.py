"""The benchmarks run, with sizes far too small for a meaningful result.

The tests do not depend on the measured times.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.services import missing
from support.services import REDIS

ROOT = Path(__file__).parents[2]
OURS = "flask-procore-webhooks"
COMMIT = "e84ab2c"
EVENTS = ("receive", "repeat", "run", "latest_only", "one_at_a_time")
PAGES = ("stats", "errors", "list")


def run(
    results: Path,
    *options: str,
    python: Sequence[str] = ("-m", "benchmarks"),
    exits: int = 0,
) -> str:
    """Run a benchmark, which fails unless each answer is 200 and each event stored."""
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("these tests run apart from the benchmarks")
    command = [sys.executable, *python, "--quick", *options]
    ran = subprocess.run(
        [*command, "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == exits, ran.stderr
    assert (results / "benchmarks.md").read_text() == ran.stdout.removesuffix("\n")
    # Without a result there is no plot.
    is_plotted = exits == 0 and find_spec("matplotlib") is not None
    assert (results / "benchmarks.png").exists() == is_plotted
    return ran.stdout


def measured(report: str) -> dict[str, float]:
    """The first number of each line of the tables, except the tables of targets."""
    tables = report.partition("## Targets")[0]
    found = re.findall(r"^\| (\S.*?) +\| +([\d.]+) \|", tables, re.MULTILINE)
    return {name: float(number) for name, number in found}


def test_verify(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "verify")
    times = measured(report)
    assert {OURS, "hmac.digest and compare_digest"} <= set(times)
    for rival in ("stripe", "standardwebhooks"):
        assert (rival in times) == (find_spec(rival) is not None)
        assert (f"- {rival}: not installed" in report) == (rival not in times)
    assert targets(report) == {"verify against hmac.digest and compare_digest"}
    assert min(times.values()) > 0


def test_receive_on_sqlite(tmp_path: Path) -> None:
    without = "--without", "PostgreSQL", "--without", "SQLite on tmpfs"
    report = run(tmp_path, "--only", "receive", *without)
    times = measured(report)
    assert set(times) == {
        f"{OURS}, SQLite",
        f"{OURS} with db=, SQLite",
        "bare Flask route",
        "hand-written view, SQLite",
        "Flask-SQLAlchemy view, SQLite",
    }
    assert min(times.values()) > 0
    assert "receive, SQLite on the disk, against the hand-written view" in report
    assert f"- {OURS}, PostgreSQL: not wanted" in report
    assert f"- {OURS}, SQLite on tmpfs: not wanted" in report


def test_head_of_a_report_describes_the_machine(tmp_path: Path) -> None:
    head = run(tmp_path, "--only", "verify").partition("## ")[0]
    assert re.search(r"load average .* before the run .* after it", head)
    assert re.search(r"one fdatasync .* took [\d.]+ ms before", head)


def test_receive_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    report = run(tmp_path, "--only", "receive")
    times = measured(report)
    for who in (OURS, f"{OURS} with db=", "hand-written view", "Flask-SQLAlchemy view"):
        assert times[f"{who}, PostgreSQL"] > 0
    assert "receive, PostgreSQL, db=, against the hand-written view" in targets(report)
    assert "PostgreSQL with synchronous_commit " in report


def test_receive_in_memory(tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no tmpfs")
    report = run(tmp_path, "--only", "receive", "--without", "PostgreSQL")
    for who in (OURS, f"{OURS} with db=", "hand-written view"):
        assert measured(report)[f"{who}, SQLite on tmpfs"] > 0
    assert {
        "receive, SQLite on tmpfs, own engine, against a bare route",
        "receive, SQLite on tmpfs, db=, against a bare route",
    } < targets(report)


@pytest.mark.soak
@pytest.mark.parametrize("player", ["wrk", "benchmarks.client"])
def test_load(tmp_path: Path, player: str) -> None:
    without = ["PostgreSQL", "granian", "Express"]
    if player != "wrk":
        without.append("wrk")
    elif not shutil.which("wrk"):
        pytest.skip("there is no wrk")
    options = [option for name in without for option in ("--without", name)]
    report = run(tmp_path, "--only", "load", *options)
    assert f"played by {player} " in report
    rates = measured(report)
    assert set(rates) == {
        f"{OURS}, gunicorn, SQLite",
        "bare Flask route, gunicorn",
        "hand-written view, gunicorn, SQLite",
    }
    assert min(rates.values()) > 0
    assert "rate, gunicorn, SQLite, against a bare route" in targets(report)
    assert f"- {OURS}, granian, SQLite: not wanted" in report


def test_process_on_sqlite(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "process", "--without", "PostgreSQL", *no_rivals())
    rates = measured(report)
    workers = ["worker"]
    if has_commit(COMMIT):
        workers.append(f"worker at {COMMIT}")
    assert set(rates) == {
        f"{OURS}, {worker}, SQLite, {what}"
        for worker in workers
        for what in ("does nothing", "writes a row")
    }
    assert min(rates.values()) > 0
    assert "- Celery, Redis, does nothing: not wanted" in report


@pytest.mark.soak
def test_process_with_rivals(tmp_path: Path, postgresql_url: str) -> None:
    require_redis()
    report = run(tmp_path, "--only", "process")
    rates = measured(report)
    for what in ("does nothing", "writes a row"):
        assert rates[f"{OURS}, worker, PostgreSQL, {what}"] > 0
    rivals = {
        "celery": "Celery, Redis, does nothing",
        "procrastinate": "procrastinate, PostgreSQL, does nothing",
    }
    for package, name in rivals.items():
        is_installed = find_spec(package) is not None
        assert (name in rates) == is_installed
        assert (f"- {name}: {package} is not installed" in report) != is_installed
    with_celery = f'{OURS}, DISPATCH="celery", PostgreSQL and Redis, does nothing'
    assert (with_celery in rates) == (find_spec("celery") is not None)


def test_growth_on_sqlite(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "growth", "--without", "PostgreSQL")
    assert set(measured(report)) == growth("SQLite")
    costs = *EVENTS, *PAGES
    for kind in ("SQLite", "PostgreSQL"):
        assert {
            *(f"{cost}, 3,000 events in {kind} against 1,000" for cost in costs),
            f"prune with nothing to do, 3,000 events in {kind}",
        } < targets(report)
    # PostgreSQL was left out.
    assert report.count("not measured") == len(costs) + 1


def test_growth_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    report = run(tmp_path, "--only", "growth", "--rows", "500", "1000")
    costs = measured(report)
    assert set(costs) == growth("SQLite", 500, 1000) | growth("PostgreSQL", 500, 1000)
    assert min(costs.values()) > 0


def test_prune_on_sqlite(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "prune", "--without", "PostgreSQL")
    assert set(measured(report)) == {f"{OURS}, SQLite", f"{OURS}, SQLite, during prune"}


@pytest.mark.soak
def test_prune_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    times = measured(run(tmp_path, "--only", "prune"))
    assert times[f"{OURS}, PostgreSQL, during prune"] > 0


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc")
    report = run(tmp_path, "--only", "memory", "--without", "PostgreSQL")
    sizes = measured(report)
    assert set(sizes) == {f"{OURS}, gunicorn, SQLite", f"{OURS}, worker, SQLite"}
    assert min(sizes.values()) > 1


@pytest.mark.slow
def test_idle(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc")
    report = run(tmp_path, "--only", "idle", "--without", "PostgreSQL")
    assert set(measured(report)) == {
        "bare Flask route, gunicorn",
        f"{OURS}, gunicorn, background, SQLite",
        f"{OURS}, worker, SQLite",
    }


@pytest.mark.parametrize("what", ["receive", "run"])
def test_profile(what: str) -> None:
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("these tests run apart from the benchmarks")
    options = [what, "--database", "SQLite", "--seconds", "1"]
    command = [sys.executable, "-m", "benchmarks.profile", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.startswith(f"{what}, {OURS}, SQLite: "), ran.stderr
    modules = r"^ *[\d.]+%  flask_procore_webhooks/\S+\.py$"
    assert re.search(modules, ran.stdout, re.MULTILINE)


def test_parts_are_separated_by_commas(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "verify,prune", "--without", "PostgreSQL")
    assert "## Verify a signature" in report
    assert "## Receive while old events are removed" in report


def test_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    figures = pytest.importorskip("benchmarks.figures")
    ours = figures.Figure([200.0, 10.0, 12.0])
    ratio = ours.over(figures.Figure([100.0, 10.0, 10.0]))
    assert ratio.values == [2.0, 1.0, 1.2]
    assert ratio.median == 1.2


def growth(kind: str, *sizes: int) -> set[str]:
    return {
        f"{cost}, {kind}, {size:,} events"
        for cost in (*EVENTS, *PAGES, "prune")
        for size in sizes or (1000, 3000)
    }


def targets(report: str) -> set[str]:
    table = report.partition("## Targets")[2]
    return {*re.findall(r"^\| (\S.*?) +\| +[≤≥]", table, re.MULTILINE)}


def has_commit(commit: str) -> bool:
    if not shutil.which("git"):
        return False
    command = ["git", "cat-file", "-e", commit]
    return not subprocess.run(command, cwd=ROOT, capture_output=True).returncode


def require_redis() -> None:
    redis = pytest.importorskip("redis")
    url = os.environ.get(*REDIS)
    try:
        redis.Redis.from_url(url).ping()
    except redis.ConnectionError as error:
        missing(f"no server at {url}, which {REDIS[0]} can change: {error}")


def no_rivals() -> list[str]:
    return ["--without", "Celery", "--without", "procrastinate"]


def test_benchmark_with_a_wrong_answer_has_no_result(tmp_path: Path) -> None:
    """The candidates' secret differs from the secret of the deliveries."""
    script = """
import sys
from benchmarks import candidates
from benchmarks.__main__ import main
candidates.SECRET = "another secret"
sys.exit(main())
"""
    report = run(
        tmp_path,
        "--only=receive",
        "--without=PostgreSQL",
        python=["-c", script],
        exits=1,
    )
    assert not measured(report)
