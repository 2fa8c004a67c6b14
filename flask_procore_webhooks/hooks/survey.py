"""Survey: the plans of all scopes of an endpoint, made with calls of its API."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from ..api.answers import LONGEST_MESSAGE
from ..api.client import ProcoreAPI
from ..api.errors import APIError
from ..config.api import read_scopes
from ..config.api import Scope
from ..config.options import signature_problem
from ..endpoint import Endpoint
from ..errors import ConfigError
from ..log import error_text
from .advice import advice
from .calls import Pair
from .calls import ScopeAPI
from .plan import authorization_problem
from .plan import compare
from .plan import Desired
from .plan import ScopePlan
from .wanted import Catalogue
from .wanted import wanted_of


class Survey:
    """Procore's side of one endpoint.

    :param api: makes the calls.
    :param covers: whether a scope of the endpoint is looked at; by default every one.
    :raises ConfigError: a key is missing, or its value cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        api: ProcoreAPI,
        covers: Callable[[Scope], bool] = lambda scope: True,
    ) -> None:
        self.endpoint = endpoint
        self._configured = scopes_of(endpoint)
        self.scopes = [each for each in self._configured if covers(each)]
        self.desired = _desired(endpoint)
        self._api = api
        self._catalogues: dict[tuple[str, str], Catalogue] = {}

    def calls(self, scope: Scope) -> ScopeAPI:
        """The calls on the hooks of a scope."""
        return ScopeAPI(self._api, scope)

    def plans(self) -> Iterator[ScopePlan]:
        """The plan of each scope. One that cannot be read has an error in it."""
        for scope in self.scopes:
            yield self.plan(scope)

    def plan(self, scope: Scope) -> ScopePlan:
        """The plan of a scope, with an error in it if it cannot be read."""
        try:
            return compare(self.calls(scope), self.desired, self.wanted_in(scope))
        except APIError as error:
            return ScopePlan(scope, error=str(error))

    def wanted_in(self, scope: Scope) -> list[Pair]:
        """The triggers that a hook of the scope is to have.

        :raises APIError: the resources of the scope could not be read.
        """
        return self.desired.wanted.pairs(self._catalogue(self.calls(scope)))

    def notes(self) -> list[str]:
        """What to know of the subscriptions, after :meth:`plans`."""
        notes = self.desired.wanted.notes([*self._catalogues.values()])
        return [*notes, *advice(self.endpoint)]

    def keeps_surplus(self, problems: Sequence[str]) -> str | None:
        """Why what looks like surplus may be needed and is not deleted, if so.

        :param problems: what :meth:`problems` returned.
        """
        if problems:
            return "of the errors"  # a misspelt pattern may ask for it
        if self.desired.wanted.is_incomplete:
            return "hooks_for= does not name what receivers of signals need"
        return None

    def problems(self) -> list[str]:
        """The patterns for which Procore has no trigger, after :meth:`plans`."""
        wanted, found = self.desired.wanted, [*self._catalogues.values()]
        if not found or not wanted.problems(found):
            return []
        read = {catalogue.kind for catalogue in found}
        unknown = []
        for kind in [each for each in ("company", "project") if each not in read]:
            try:
                found.append(self._other_catalogue(kind))
            except LookupError as error:
                unknown.append(str(error))
        return wanted.problems(found, unknown) + self._without_company(found)

    def _other_catalogue(self, kind: str) -> Catalogue:
        """The resources of a kind of scope that is not among those looked at.

        :raises LookupError: they cannot be read; with a sentence for the operator.
        """
        scope = Scope(self.scopes[0].company)
        if kind == "project":
            projects = (each for each in self._configured if each.project)
            found = next(projects, None)
            if found is None:
                raise LookupError(
                    "SCOPES names no project: resources of projects are unknown."
                )
            scope = found
        try:
            return self._read(self.calls(scope))
        except APIError as error:
            raise LookupError(
                f"The resources of a {kind} are unknown: {error}"
            ) from None

    def _without_company(self, found: list[Catalogue]) -> list[str]:
        """The patterns of company resources, if no scope is a company."""
        if any(scope.project is None for scope in self._configured):
            return []
        listed = json.dumps({"company": self.scopes[0].company})
        in_projects = [each for each in found if each.kind == "project"]
        missing = [
            f"{pattern.asked_by}: {pattern.resource} is a resource of the company: add"
            f" {listed} to SCOPES."
            for pattern in self.desired.wanted.patterns
            if any(each.find(pattern.resource) for each in found)
            and not any(each.find(pattern.resource) for each in in_projects)
        ]
        return list(dict.fromkeys(missing))

    def _catalogue(self, calls: ScopeAPI) -> Catalogue:
        """What hooks of that kind of scope can send in the company; asked once."""
        key = calls.scope.company, calls.scope.kind
        if key not in self._catalogues:
            self._catalogues[key] = self._read(calls)
        return self._catalogues[key]

    def _read(self, calls: ScopeAPI) -> Catalogue:
        return Catalogue(calls.scope.kind, calls.resources(self.desired.version))


def shared_hooks(surveys: Iterable[Survey]) -> list[str]:
    """The problems of endpoints that ask for one hook, one sentence each.

    Each would change the hook that the other needs.
    """
    owners: dict[tuple[str, Scope, str], str] = {}
    problems = []
    for survey in surveys:
        name, namespace = survey.endpoint.name, survey.desired.namespace
        for scope in survey.scopes:
            key = survey.endpoint.settings.api.api_url, scope, namespace
            owner = owners.setdefault(key, name)
            if owner != name:
                problems.append(
                    f"{owner} and {name} ask for the same hook, of {namespace!r} in"
                    f" {scope}: give each its own NAMESPACE."
                )
    return problems


def scopes_of(endpoint: Endpoint) -> list[Scope]:
    """The scopes of the endpoint now; a function in the settings is called.

    :raises ConfigError: there is none, or a value is no scope.
    """
    key, given = f"{endpoint.config_prefix}SCOPES", endpoint.settings.api.scopes
    values = given if isinstance(given, tuple) else _called(endpoint, key, given)
    scopes, problems = read_scopes(values)
    if problems:
        raise ConfigError([f"{key} {problem}" for problem in problems])
    if not scopes:
        raise ConfigError([f"{key} names no company and no project."])
    return scopes


def _called(
    endpoint: Endpoint, key: str, function: Callable[..., object]
) -> list[object]:
    """What the function of the host returns, with the app if it takes an argument.

    :raises ConfigError: it raises, also while its values are read, or returns no list.
    """
    takes_app = signature_problem(function, "app") is None
    try:
        values = function(endpoint.app) if takes_app else function()
        if isinstance(values, Iterable) and not isinstance(values, (str, Mapping)):
            return [*values]
    except Exception as error:
        # Only the first line: those after it may hold a statement with its values.
        raised = (error_text(error).splitlines() or [""])[0][:LONGEST_MESSAGE]
        raise ConfigError([f"{key}: the function raised {raised}"]) from error
    raise ConfigError([f"{key}: the function returned no list."])


def _desired(endpoint: Endpoint) -> Desired:
    """The hook that the endpoint asks for.

    :raises ConfigError: a key is missing, or the Authorization value is too short.
    """
    settings, prefix = endpoint.settings.api, endpoint.config_prefix
    problems = [f"{prefix}{key} is not set." for key in settings.missing()]
    values = endpoint.settings.authorizations
    authorization = values[0].decode("utf-8", "surrogateescape") if values else None
    if problem := authorization_problem(authorization):
        problems.append(f"{prefix}AUTHORIZATION {problem}")
    if problems:
        raise ConfigError([f"{endpoint.name}: {each}" for each in problems])
    return Desired(
        url=settings.url or "",
        namespace=settings.namespace or "",
        version=settings.payload_version,
        wanted=wanted_of(endpoint),
        authorization=authorization,
    )
