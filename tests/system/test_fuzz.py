"""The fuzzer: its targets accept their seeds, and it reports what it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.targets import seeds
from fuzz.targets import TARGETS
from support.processes import environment

pytestmark = pytest.mark.slow

#: A parser that fails for one input of some thousands, if nothing guides the inputs.
PLANT = """
from flask_procore_webhooks.senders import payload

def to_datetime(value, before=payload.to_datetime):
    if isinstance(value, str) and value[:1] == "-":
        raise LookupError("planted")
    return before(value)

payload.to_datetime = to_datetime
"""


@pytest.mark.parametrize("name", TARGETS)
def test_real_payloads_pass_each_target(name: str) -> None:
    function = TARGETS[name].make()
    try:
        for data in seeds(name):
            function(data)
    finally:
        getattr(function, "close", lambda: None)()


def test_an_error_is_reported_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANT)
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "payload", "--seconds", "20"],
        env=environment(path=[tmp_path]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    assert "LookupError: planted" in done.stdout
    assert "input: b" in done.stdout
