"""Copies of the examples, run with the commands of their READMEs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import closing
from dataclasses import dataclass
from dataclasses import field
from http.client import HTTPConnection
from pathlib import Path

from support.servers import serve
from support.servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Example:
    """A copy of an example, so that the original stays unchanged."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run ``script`` in the example's folder, with this Python's commands."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-ec", script],
            cwd=self.folder,
            env={**os.environ, **self.env, "PATH": path},
            capture_output=True,
            text=True,
        )

    def run(self, script: str) -> str:
        ran = self.shell(script)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def trigger(self, arguments: str, url: str) -> list[str]:
        """Deliver with the real command; return the status and body of each answer."""
        ran = self.shell(f"flask procore-webhooks trigger {arguments} --url {url}")
        answers = answers_in(ran.stdout)
        assert answers, ran.stderr
        assert ran.returncode == any(not one.startswith("200") for one in answers)
        return answers

    def read_exports(self) -> None:
        """Add the README's exports to the environment."""
        for line in self.told():
            command, *words = shlex.split(line)
            if command == "export":
                self.env |= dict(word.split("=", 1) for word in words)

    def follow(self, server: Server) -> str:
        """Run the README's commands against ``server``."""
        commands = (
            "flask procore-webhooks ",
            "flask prudra-webhooks ",
            "curl ",
            "sleep ",
        )
        lines = [line for line in self.told() if line.startswith(commands)]
        return self.run("\n".join(lines).replace(":8000", f":{server.port}"))

    def serve(self, app: str, port: int) -> AbstractContextManager[Server]:
        """Run ``app`` from the example's folder with ``flask run``."""
        return serve(app, server="flask", folder=self.folder, env=self.env, port=port)

    def told(self) -> list[str]:
        """The shell commands of the README."""
        text = (self.folder / "README.md").read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        return "".join(blocks).splitlines()


def answers_in(output: str) -> list[str]:
    found = re.findall(r"^(\d{3})  \d+ ms  (.*)$", output, re.MULTILINE)
    return [" ".join(answer) for answer in found]


def copy_of(name: str, folder: Path) -> Example:
    kept_out = shutil.ignore_patterns("__pycache__", "instance")
    copy = shutil.copytree(EXAMPLES / name, folder / name, ignore=kept_out)
    return Example(copy)


def http(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Return status and body of the answer."""
    host, _, path = url.removeprefix("http://").partition("/")
    with closing(HTTPConnection(host, timeout=10)) as connection:
        connection.request(method, f"/{path}", body, dict(headers or {}))
        response = connection.getresponse()
        return f"{response.status} {response.read().decode()}"
