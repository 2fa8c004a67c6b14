"""The command ``worker``: its options."""

from __future__ import annotations

import pytest
from flask import Flask


@pytest.mark.parametrize("option", ["--poll", "--grace"])
@pytest.mark.parametrize("seconds", ["inf", "1e10", "-1"])
def test_worker_durations_are_limited(app: Flask, option: str, seconds: str) -> None:
    command = ["procore-webhooks", "worker", "--once", option, seconds]
    result = app.test_cli_runner().invoke(args=command)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
