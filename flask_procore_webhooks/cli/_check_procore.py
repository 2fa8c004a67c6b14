"""The part of ``check`` about Procore's REST side, if it is configured."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from ..endpoint import Endpoint
from ..hooks.advice import advice
from ..senders.procore import PROCORE
from ._findings import Finding
from ._findings import warning


def procore(endpoint: Endpoint) -> Iterator[Finding]:
    """What ``hooks`` and ``reconcile`` need. One request is made, for ``lag``."""
    settings, prefix = endpoint.settings.api, endpoint.config_prefix
    if endpoint.source is not PROCORE or not settings.is_configured:
        return
    if missing := settings.missing():
        keys = ", ".join(prefix + key for key in missing)
        yield warning(f"The commands hooks and reconcile need {keys}.")
    yield from map(warning, advice(endpoint))
    if find_spec("requests") is None:
        yield warning(
            "The commands hooks and reconcile cannot run:"
            " pip install 'flask-procore-webhooks[procore]'."
        )
    else:
        yield from _clock(endpoint)


def _clock(endpoint: Endpoint) -> Iterator[Finding]:
    """Compare this host's clock with Procore's, on which ``lag`` depends."""
    from ..api.configured import seconds_ahead

    lags = {each.name: each.lag for each in endpoint.subscribers if each.lag}
    ahead = seconds_ahead(endpoint) if lags else None
    for name, lag in lags.items():
        if ahead is not None and ahead >= lag:
            yield warning(
                f"This host's clock is about {ahead:.1f} s ahead of Procore's, and the"
                f" lag of {name} is {lag:g} s: it may miss the last state. Correct the"
                " clock, or take a longer lag."
            )
