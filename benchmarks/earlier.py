"""The package as it was at an earlier commit, with the benchmarks of that commit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .databases import Missing
from .servers import last_line
from .servers import ROOT

COMMIT = "e84ab2c"
FOLDERS = ("flask_procore_webhooks", "benchmarks")


def export(folder: Path) -> Path:
    """Write the package and the benchmarks of :data:`COMMIT` to a new folder in it.

    :raises Missing: there is no git, or no such commit.
    """
    target, archive = folder / COMMIT, folder / f"{COMMIT}.tar"
    if target.exists():
        return target
    git = shutil.which("git")
    if not git:
        raise Missing("no git on PATH")
    options = ["--format=tar", f"--prefix={COMMIT}/", f"--output={archive}"]
    command = [git, "archive", *options, COMMIT, *FOLDERS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True)
    if ran.returncode:
        raise Missing(f"git has no commit {COMMIT}: {last_line(ran.stderr)}")
    shutil.unpack_archive(archive, folder)
    return target
