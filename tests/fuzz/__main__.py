"""``python -m fuzz``: fuzz every target, and print the number of inputs."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from support.processes import environment

from .targets import TARGETS

INPUTS = re.compile(r"(?:stat::number_of_executed_units:|^Done) +(\d+)", re.MULTILINE)
#: Seconds for the start and the last input of a target, beside its own.
PATIENCE = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=3, help="for each target")
    options = parser.parse_args()
    if wrong := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(wrong)}")
    results = [_fuzz(name, options.seconds) for name in options.targets]
    return 0 if all(results) else 1


def _fuzz(name: str, seconds: float) -> bool:
    """Fuzz a target in a process of its own; print the number of inputs."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        command = [sys.executable, "-m", "fuzz.engine", name, str(seconds), folder]
        ended = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + PATIENCE,
        )
        output = ended.stdout.decode(errors="replace")
        found = INPUTS.findall(output)
        guided = "guided by coverage" if "stat::" in output else "at random"
        number = found[-1] if found else "no number of"
        print(f"{name:10} {number:>9} inputs {guided}, {seconds:g} s", flush=True)
        if ended.returncode == 0:
            return True
        print(output[-6000:])
        for artifact in [*Path(folder).glob("crash-*"), *Path(folder).glob("time*")]:
            print(f"input: {artifact.read_bytes()!r}")
        return False


if __name__ == "__main__":
    sys.exit(main())
