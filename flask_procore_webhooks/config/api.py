"""Settings of Procore's REST side: the app's hooks, and the API that holds them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import TypeVar
from urllib.parse import urlsplit

from .reader import Reader
from .values import shown

KEYS = (
    "URL",
    "API_CLIENT_ID",
    "API_CLIENT_SECRET",
    "API_URL",
    "API_LOGIN_URL",
    "NAMESPACE",
    "PAYLOAD_VERSION",
    "SCOPES",
)
#: Days for which Procore lists the deliveries of a hook, by pictures of its Admin tool:
#: https://github.com/procore/documentation, assets/guides/webhooks-*.png
LISTED_DAYS = 28
#: Procore's rule for namespaces.
#: https://developers.procore.com/documentation/webhooks-api
LONGEST_NAMESPACE = 80
NAMESPACE = re.compile(rf"[a-z0-9-]{{1,{LONGEST_NAMESPACE}}}")
VERSION = re.compile(r"v\d{1,2}(\.\d{1,2})?", re.ASCII)
ID = re.compile(r"[1-9]\d{0,19}", re.ASCII)
NAMESPACE_RULE = "lower-case letters, digits and '-'"
VERSION_RULE = "a version, as in 'v4.0'"
SCOPE_RULE = 'as in {"company": "1"} or {"company": "1", "project": "2"}'

#: The type of a default.
Default = TypeVar("Default", str, None)


@dataclass(frozen=True)
class Scope:
    """What a hook belongs to: a company, or a project of a company."""

    company: str
    project: str | None = None

    @property
    def kind(self) -> str:
        """``company`` or ``project``."""
        return "company" if self.project is None else "project"

    def __str__(self) -> str:
        if self.project is None:
            return f"company {self.company}"
        return f"project {self.project} of company {self.company}"


#: The scopes, or a function that returns them: with the app as argument or without.
Scopes = tuple[Scope, ...] | Callable[..., Iterable[object]]


@dataclass(frozen=True)
class ApiSettings:
    """How to reach Procore's API, and the hooks that the app wants there."""

    #: The public address of the route.
    url: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    api_url: str = "https://api.procore.com"
    login_url: str = "https://login.procore.com"
    namespace: str | None = None
    payload_version: str = "v4.0"
    scopes: Scopes = ()

    @property
    def is_configured(self) -> bool:
        """Whether the API can be called."""
        return bool(self.client_id and self.client_secret)

    def missing(self) -> list[str]:
        """The keys, without their prefix, that hooks need and that are not set."""
        given = {
            "URL": self.url,
            "API_CLIENT_ID": self.client_id,
            "API_CLIENT_SECRET": self.client_secret,
            "NAMESPACE": self.namespace,
            "SCOPES": self.scopes,
        }
        return [key for key, value in given.items() if not value]


def read_api(reader: Reader) -> ApiSettings:
    """Read the keys; the problems are added to those of the reader."""
    version = ApiSettings.payload_version
    return ApiSettings(
        url=_url(reader, "URL", None),
        client_id=reader.text("API_CLIENT_ID"),
        client_secret=reader.text("API_CLIENT_SECRET"),
        api_url=_url(reader, "API_URL", ApiSettings.api_url),
        login_url=_url(reader, "API_LOGIN_URL", ApiSettings.login_url),
        namespace=_matching(reader, "NAMESPACE", NAMESPACE, NAMESPACE_RULE, None),
        payload_version=_matching(
            reader, "PAYLOAD_VERSION", VERSION, VERSION_RULE, version
        ),
        scopes=_scopes(reader),
    )


def read_scopes(values: Iterable[object]) -> tuple[list[Scope], list[str]]:
    """The scopes, each once and in order, and the problems of other values."""
    found: dict[Scope, None] = {}
    problems = []
    for value in values:
        scope = value if isinstance(value, Scope) else _scope(value)
        if scope is None:
            problems.append(f"must hold scopes, {SCOPE_RULE}, not {shown(value)}.")
        else:
            found[scope] = None
    return list(found), problems


def is_secure(url: str) -> bool:
    """Whether what is sent to the URL is encrypted, or stays on this machine."""
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and is_loopback(parts.hostname or "")
    return parts.scheme == "https" or is_here


def _scopes(reader: Reader) -> Scopes:
    value = reader.get("SCOPES")
    if value is None or callable(value):
        return value or ()
    if not isinstance(value, (list, tuple)):
        reader.problem(
            "SCOPES", f"must be a list or a function that returns one, {SCOPE_RULE}."
        )
        return ()
    found, problems = read_scopes(value)
    for problem in problems:
        reader.problem("SCOPES", problem)
    return tuple(found)


def _scope(value: object) -> Scope | None:
    if not isinstance(value, Mapping) or not value.keys() <= {"company", "project"}:
        return None
    company, project = _id(value.get("company")), _id(value.get("project"))
    has_project = value.get("project") is not None
    if company is None or (has_project and project is None):
        return None
    return Scope(company, project)


def _id(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return text if ID.fullmatch(text) else None


def _matching(
    reader: Reader, key: str, pattern: re.Pattern[str], rule: str, default: Default
) -> str | Default:
    value = reader.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or not pattern.fullmatch(value):
        reader.problem(key, f"must be {rule}, not {shown(value)}.")
        return default
    return value


def _url(reader: Reader, key: str, default: Default) -> str | Default:
    value = reader.get(key)
    if value is None:
        return default
    if problem := _url_problem(key, value):
        reader.problem(key, problem)
        return default
    return str(value).rstrip("/") if key != "URL" else str(value)


def _url_problem(key: str, value: object) -> str | None:
    """Why the value is no address, if so; the text holds no password."""
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        return 'must be an address, as in "https://app.example.com/webhooks/procore".'
    is_plain = str(value).isprintable() and not re.search(r"\s", str(value))
    if "@" in parts.netloc or parts.fragment or not is_plain:
        return "must not hold a password, a fragment or white space."
    if parts.query and key != "URL":
        return "must not hold a query."
    if not is_secure(str(value)):
        return f"must begin with https://, not {shown(value)}; http:// is for loopback."
    return None


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
