"""Modules loaded by an import of the package and of its pytest plug-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.processes import environment


def modules_after(script: str, folder: Path) -> set[str]:
    """The modules that Python has imported after running ``script``."""
    show = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", f"{script}\n{show}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_the_package_imports_no_dialect_and_no_command(tmp_path: Path) -> None:
    found = modules_after("import flask_procore_webhooks", tmp_path)
    dialects = {name for name in found if name.startswith("sqlalchemy.dialects.")}
    commands = {n for n in found if n.startswith("flask_procore_webhooks.cli.")}
    assert dialects == commands == set()
    assert found.isdisjoint({"celery", "kombu", "psycopg", "pytest", "requests"})


def test_pytest_imports_the_package_only_for_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    script = "import pytest; assert pytest.main(['-q', '-p', 'no:cacheprovider']) == 0"
    found = modules_after(script, tmp_path)
    assert "pytest_flask_procore_webhooks" in found
    assert {name for name in found if name.startswith("flask_procore")} == set()
    assert "sqlalchemy" not in found
