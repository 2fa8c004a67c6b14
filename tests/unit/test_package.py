"""What is shipped, what is public, and which way the imports point."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from support.services import missing

import flask_procore_webhooks

ROOT = Path(__file__).parents[2]
PACKAGE = Path(flask_procore_webhooks.__file__).parent
NAME = "flask_procore_webhooks"

PUBLIC = """
    ProcoreWebhooks PrudraWebhooks Event
    resource_event resource_created resource_updated resource_deleted
    event_recorded event_repeated event_processed event_failed event_dead
    delivery_rejected RetryLater Discard
    ProcoreWebhooksError ConfigError DeliveryError BadSignature BadPayload
"""

#: Each module imports only from those before it; ``cli`` is one of them.
LAYERS = """
    errors settings events sources verify subscribers signals forks tables sessions
    engines database store states grouping inserts statements recorder inbox wakeup
    browse upkeep endpoint guarantees leases process worker background celery dispatch
    samples views cli blueprint testing pytest_plugin
""".split()

#: These know no HTTP and no SQL.
PURE = ("errors", "settings", "events", "sources", "verify")


# The public names


def test_the_public_names_are_those_of_the_contract() -> None:
    names = {
        name
        for name, value in vars(flask_procore_webhooks).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == set(PUBLIC.split())


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_documented_and_exported_to_type_checkers(name: str) -> None:
    """``import X as X`` is what strict type checkers take for an export."""
    value = getattr(flask_procore_webhooks, name)
    assert len(value.__doc__) > 10
    assert f"import {name} as {name}\n" in (PACKAGE / "__init__.py").read_text()


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# The layers


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package with the layer that it belongs to."""
    for file in sorted(PACKAGE.rglob("*.py")):
        layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer != "__init__":
            yield layer, file


def imported(file: Path) -> Iterator[str]:
    """Every module that ``file`` imports, at any place in it, by its absolute name."""
    parents = [NAME, *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1]
            names = [node.module] if node.module else [a.name for a in node.names]
            yield from (".".join([*base, str(name)]) for name in names)


def test_every_module_has_its_layer() -> None:
    assert {layer for layer, _ in modules()} == set(LAYERS)


@pytest.mark.parametrize(
    ("layer", "file"), list(modules()), ids=lambda value: Path(value).stem
)
def test_imports_point_one_way(layer: str, file: Path) -> None:
    allowed = LAYERS[: LAYERS.index(layer)]
    for name in imported(file):
        first, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if first == NAME and not (layer == target == "cli"):
            assert target in allowed, f"{layer} imports {name}"


@pytest.mark.parametrize("layer", PURE)
def test_the_inner_layers_know_no_http_and_no_sql(layer: str) -> None:
    known = {NAME, "itsdangerous", *sys.stdlib_module_names}
    found = {name.partition(".")[0] for name in imported(PACKAGE / f"{layer}.py")}
    assert found <= known


def test_nothing_is_imported_that_is_not_required() -> None:
    """Flask brings the last four; one module is for pytest, one for Celery."""
    required = {"flask", "itsdangerous", "sqlalchemy", "blinker", "click", "werkzeug"}
    found = {
        name.partition(".")[0]
        for layer, file in modules()
        if layer not in ("pytest_plugin", "celery")
        for name in imported(file)
    }
    assert found - sys.stdlib_module_names - {NAME} <= required


def test_the_guide_lists_the_layers_in_their_order() -> None:
    guide = (ROOT / "docs" / "architecture.md").read_text()
    table = guide[guide.index("## Modules") : guide.index("know neither Flask")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)/?`", " ".join(cells)) == LAYERS


# What is installed


def requirements(lines: list[str]) -> set[str]:
    """The names in ``Requires-Dist`` that no extra has to be asked for."""
    always = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w-]", line)[0].lower() for line in always}


def test_three_packages_are_required_and_no_more() -> None:
    required = requirements(metadata.requires("flask-procore-webhooks") or [])
    assert required == {"flask", "itsdangerous", "sqlalchemy"}


def test_pytest_finds_the_plug_in_by_its_entry_point() -> None:
    entries = metadata.distribution("flask-procore-webhooks").entry_points
    found = {(entry.group, entry.name, entry.value) for entry in entries}
    assert found == {("pytest11", NAME, f"{NAME}.pytest_plugin")}


# What is built


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
    """Built from a copy of the source as a release is: the wheel from the sdist."""
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
def test_the_wheel_holds_every_module_the_marker_and_nothing_else(built: Built) -> None:
    files = [*(ROOT / NAME).rglob("*.py"), ROOT / NAME / "py.typed"]
    expected = {str(file.relative_to(ROOT)) for file in files}
    found = {name for name in built.in_wheel() if ".dist-info/" not in name}
    assert found == expected
    assert f"{NAME}/cli/__init__.py" in found
    assert built.wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_the_wheel_says_what_it_is_and_needs(built: Built) -> None:
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
def test_the_wheel_works_where_it_is_installed(built: Built, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(built.wheel)], check=True)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from importlib import metadata
import flask_procore_webhooks.testing
(entry,) = metadata.distribution("flask-procore-webhooks").entry_points
print(flask_procore_webhooks.__file__, entry.load().__name__)
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    expected = f"{tmp_path / NAME / '__init__.py'} {NAME}.pytest_plugin"
    assert ran.stdout.strip() == expected, ran.stderr


@pytest.mark.slow
def test_the_sdist_can_be_built_and_tested(built: Built) -> None:
    """Setuptools takes tests/test_*.py by itself, which alone cannot run."""
    shipped = built.in_sdist()
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= shipped
    if any(name.startswith("tests/") for name in shipped):
        helpers = {f"tests/{file.name}" for file in (ROOT / "tests").glob("*.py")}
        assert helpers <= shipped, "tests without what they need"
