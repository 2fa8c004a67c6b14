"""Dependencies, and the wheel and the sdist, built as for a release."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.services import missing

ROOT = Path(__file__).parents[2]
NAME = "flask_procore_webhooks"


def requirements(lines: list[str]) -> set[str]:
    """The names in ``Requires-Dist`` outside the extras."""
    always = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w-]", line)[0].lower() for line in always}


# Dependencies


def test_exactly_three_packages_are_required() -> None:
    required = requirements(metadata.requires("flask-procore-webhooks") or [])
    assert required == {"flask", "itsdangerous", "sqlalchemy"}


def test_pytest_finds_the_plug_in_by_its_entry_point() -> None:
    entries = metadata.distribution("flask-procore-webhooks").entry_points
    found = {(entry.group, entry.name, entry.value) for entry in entries}
    assert found == {("pytest11", NAME, f"pytest_{NAME}")}


# Wheel and sdist


@dataclass
class Built:
    wheel: Path
    sdist: Path

    def in_wheel(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as wheel:
            return set(wheel.namelist())

    def in_sdist(self) -> set[str]:
        with tarfile.open(self.sdist) as sdist:
            files = [member.name for member in sdist.getmembers() if member.isfile()]
        return {name.partition("/")[2] for name in files}

    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as wheel:
            (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
            return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build from a copy of the source, as for a release: the wheel from the sdist."""
    if not (ROOT / NAME).is_dir():
        pytest.skip("these tests run apart from the source")
    if not find_spec("build"):
        missing("there is no build to build with")
    folder = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist"
    )
    shutil.copytree(ROOT, folder, ignore=unwanted, dirs_exist_ok=True)
    command = [sys.executable, "-m", "build", "--outdir", "dist", "."]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,), (sdist,) = folder.glob("dist/*.whl"), folder.glob("dist/*.tar.gz")
    return Built(wheel, sdist)


@pytest.mark.slow
def test_wheel_contains_exactly_the_modules_and_py_typed(built: Built) -> None:
    files = [*(ROOT / NAME).rglob("*.py"), ROOT / NAME / "py.typed"]
    files.append(ROOT / f"pytest_{NAME}.py")
    expected = {str(file.relative_to(ROOT)) for file in files}
    found = {name for name in built.in_wheel() if ".dist-info/" not in name}
    assert found == expected
    assert f"{NAME}/cli/__init__.py" in found
    assert built.wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_wheel_metadata_is_complete(built: Built) -> None:
    about = built.metadata()
    assert about["Name"] == "flask-procore-webhooks"
    assert about["Requires-Python"] == ">=3.10"
    assert requirements(about.get_all("Requires-Dist") or []) == {
        "flask",
        "itsdangerous",
        "sqlalchemy",
    }
    assert "Typing :: Typed" in (about.get_all("Classifier") or [])
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().startswith("# flask-procore-webhooks")
    assert any(name.endswith("LICENSE") for name in built.in_wheel())
    assert f"## {about['Version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_installed_wheel_can_be_imported(built: Built, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(built.wheel)], check=True)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from importlib import metadata
import flask_procore_webhooks.testing
(entry,) = metadata.distribution("flask-procore-webhooks").entry_points
print(flask_procore_webhooks.__file__, entry.load().__file__)
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    plug_in = tmp_path / f"pytest_{NAME}.py"
    expected = f"{tmp_path / NAME / '__init__.py'} {plug_in}"
    assert ran.stdout.strip() == expected, ran.stderr


@pytest.mark.slow
def test_sdist_can_be_built_and_tested(built: Built) -> None:
    """By default setuptools includes only tests/test_*.py, without their helpers."""
    shipped = built.in_sdist()
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= shipped
    if any(name.startswith("tests/") for name in shipped):
        helpers = {f"tests/{file.name}" for file in (ROOT / "tests").glob("*.py")}
        assert helpers <= shipped, "tests without what they need"
