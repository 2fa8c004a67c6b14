"""What is public, and which way the imports point."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

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
