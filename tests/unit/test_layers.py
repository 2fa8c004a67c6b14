"""The public names, and the direction of imports between layers."""

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

#: Modules and folders of the package; each imports only from earlier ones.
LAYERS = """
    log errors event runtime serving config senders subscribers signals schema
    storage migrations inbox operations endpoint running api hooks dispatching
    inbox_access refusals views fake testing cli blueprint __main__
""".split()

#: The modules in each folder; each imports only from earlier ones.
FOLDERS = {
    "senders": "source payload procore prudra differences signature samples",
    "config": "values options reader api",
    "schema": "columns tables state marks gaps mismatches carry_over",
    "storage": """
        masks servers engines upgrade connections database store texts probes upserts
        tally writer
    """,
    "inbox": """
        status inserts direct record keys others jobs completion held claims
        batches cut due added
    """,
    "operations": """
        filters queries seen numbers journal pauses selection plans writes changes
        progress prune
    """,
    "running": """
        failures sessions calls gate held leases plan schedule outcomes jobs run
    """,
    "api": """
        limits errors answers tokens transport paging lists changes client configured
    """,
    "hooks": """
        advice calls wanted plan apply survey changes deliveries report cursor insertion
        reconcile
    """,
    "dispatching": """
        crew worker pool notify background celery dispatch enqueue reconciling tasks
        modes
    """,
    "fake": """
        switches catalogue model world transport sender answers access lists_api
        hooks_api records_api app
    """,
    "testing": "isolation files",
    "cli": """
        _http _values _output _conditions _options _actor _report _selected _preview
        _changes _processes _findings _hook_texts _hooks _reconcile
        _check_settings _check_route _check_procore _check_tables _check_database
        _check_work
    """,
}

#: The modules of commands, one per command; ``pause`` also defines ``resume``.
COMMANDS = """
    check discard errors init_db journal list pause progress prune replay secret show
    stats trigger verify worker hooks reconcile
""".split()

#: Modules and folders that import neither Flask nor SQLAlchemy.
PURE = ("log", "errors", "event", "runtime", "config", "senders")

#: Maximum lines of a module and of a function.
LONGEST_MODULE = 300
LONGEST_FUNCTION = 45


# The public names


def test_public_names_are_those_of_the_contract() -> None:
    names = {
        name
        for name, value in vars(flask_procore_webhooks).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == set(PUBLIC.split())


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_documented_and_exported_to_type_checkers(name: str) -> None:
    """Strict type checkers treat ``import X as X`` as an export."""
    value = getattr(flask_procore_webhooks, name)
    assert len(value.__doc__) > 10
    assert f"import {name} as {name}\n" in (PACKAGE / "__init__.py").read_text()


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# The layers


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def place(name: str) -> tuple[str, str]:
    """Layer and module of ``flask_procore_webhooks.layer.module``; or ``""``."""
    parts = [*name.split(".")[1:], "", ""]
    return parts[0], parts[1]


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join([NAME, *(part for part in parts if part != "__init__")])


def imported(file: Path) -> Iterator[str]:
    """The absolute name of every module that ``file`` imports, anywhere in the file."""
    parents = [NAME, *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = [*parents[: len(parents) - node.level + 1]]
            base += [node.module] if node.module else []
            for alias in node.names:
                path = PACKAGE.joinpath(*".".join(base).split(".")[1:])
                is_module = (path / f"{alias.name}.py").exists()
                yield ".".join([*base, alias.name] if is_module else base)


def test_every_module_belongs_to_a_layer() -> None:
    layers = {place(module_name(file))[0] for file in modules()} - {""}
    assert layers == set(LAYERS)
    for folder, names in FOLDERS.items():
        found = {file.stem for file in (PACKAGE / folder).glob("*.py")}
        commands = COMMANDS if folder == "cli" else []
        assert found - {"__init__"} == {*names.split(), *commands}


@pytest.mark.parametrize("file", modules(), ids=module_name)
def test_imports_follow_the_order_of_layers(file: Path) -> None:
    layer, module = place(module_name(file))
    if not layer:
        return  # the package itself imports the public names
    before = LAYERS[: LAYERS.index(layer)]
    names = FOLDERS.get(layer, "").split()
    siblings = names[: names.index(module)] if module in names else names
    for name in imported(file):
        if name.partition(".")[0] == NAME:
            to_layer, to_module = place(name)
            is_sibling = to_layer == layer and to_module in siblings
            assert to_layer in before or is_sibling, f"{module_name(file)}: {name}"


@pytest.mark.parametrize("layer", PURE)
def test_inner_layers_know_no_http_and_no_sql(layer: str) -> None:
    known = {NAME, "itsdangerous", *sys.stdlib_module_names}
    for file in modules():
        if place(module_name(file))[0] == layer:
            assert {name.partition(".")[0] for name in imported(file)} <= known


def test_folders_hold_at_most_twelve_modules() -> None:
    """``cli`` has a file for each command, ``inbox`` all that changes an event."""
    most = {PACKAGE.name: 13, "cli": 99, "inbox": 14}
    for folder in {file.parent for file in modules()}:
        count = len(
            {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}
        )
        assert count <= most.get(folder.name, 12), folder.name


def test_modules_and_functions_stay_short() -> None:
    lengths = []
    for file in modules():
        source = file.read_text()
        assert source.count("\n") <= LONGEST_MODULE, file.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = body_lines(node, source)
                assert lines <= LONGEST_FUNCTION, f"{file.name}: {node.name}"
                lengths.append(lines)
    short = [length for length in lengths if length < 15]
    assert len(short) >= 0.9 * len(lengths)


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> int:
    """Lines of a function's body, without its docstring, comments and blank lines."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    lines = source.split("\n")[body[0].lineno - 1 : body[-1].end_lineno]
    return len([line for line in lines if line.strip() and line.strip()[0] != "#"])


def test_registries_at_module_level_are_those_of_subscribers() -> None:
    """Other state of a process is in a Runtime, which a forked child replaces."""
    weak = re.compile(r"^\w+.*= (weakref\.)?Weak\w+\(", re.MULTILINE)
    found = {file.stem for file in modules() if weak.search(file.read_text())}
    assert found == {"subscribers"}
    hooks = [file.stem for file in modules() if "register_at_fork" in file.read_text()]
    # It only starts the background thread without a request.
    assert hooks == ["serving"]


def test_the_logger_is_imported_with_its_filter() -> None:
    """A logger of another name would have records of several lines."""
    found = {file.stem for file in modules() if "getLogger(" in file.read_text()}
    assert found == {"log"}


def test_only_required_packages_are_imported() -> None:
    """Flask requires the last three; an extra's packages are in modules of its own."""
    required = {"flask", "itsdangerous", "sqlalchemy", "blinker", "click", "werkzeug"}
    of_extras = {
        "celery": {"dispatching/celery.py", "dispatching/tasks.py"},
        "requests": {str(p.relative_to(PACKAGE)) for p in (PACKAGE / "api").iterdir()},
    }
    # For types, and where a session is given.
    of_extras["requests"] |= {"inbox_access.py", "fake/transport.py"}
    of_extras["urllib3"] = {"fake/transport.py"}
    for file in modules():
        names = {name.partition(".")[0] for name in imported(file)}
        for name in names - sys.stdlib_module_names - {NAME, "_typeshed"} - required:
            assert str(file.relative_to(PACKAGE)) in of_extras.get(name, ()), name


def test_guide_lists_the_layers_in_their_order() -> None:
    guide = (ROOT / "docs" / "architecture.md").read_text()
    table = guide[guide.index("## Modules") : guide.index("know neither Flask")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)/?`", " ".join(cells)) == LAYERS
