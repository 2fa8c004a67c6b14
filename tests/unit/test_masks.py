"""Masks of messages, and the patterns that find what was masked."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies

from flask_procore_webhooks.storage.masks import LONGEST
from flask_procore_webhooks.storage.masks import mask
from flask_procore_webhooks.storage.masks import pattern_of

MASKED = {
    "": "",
    "Timeout after 30 s": "Timeout after # s",
    "Timeout after 30.25 s": "Timeout after #.# s",
    "HTTP 503 at https://x.com/rest/v1.0/rfis/4711?a=b": (
        "HTTP # at https://x.com/rest/v#.#/rfis/#?a=b"
    ),
    "no RFI 'Roof of \"B\"' here": "no RFI '…' here",
    "can't read 'it's 5'": "can't read '…'",
    "isn't what the Smiths' wanted": "isn't what the Smiths' wanted",
    'key "a b" and `c`': 'key "…" and `…`',
    "an open ' and \" stay": "an open ' and \" stay",
    "ann.lee+x@mail.example.com is away": "… is away",
    "user 1b4e28ba-2fa1-11d2-883f-0016d3cca427 gone": "user # gone",
    "at 0x7f3a9c, sha 8f14e45fceea167a": "at #, sha #",
    "event 01HYPOTHETICALEVENT9 evt_8f3a21": "event # #",
    "utf-8 and v4 and sha256": "utf-# and v# and sha#",
    "deadbeef and feedback": "deadbeef and feedback",
    "2026-11-26T10:00:00Z": "#-#-#T#:#:#Z",
    " two\n\tlines  \r\n": "two lines",
    "Straße 7 für Anaïs": "Straße # für Anaïs",
    "x" * LONGEST: "x" * LONGEST,
    "y" * 2000: "y" * (LONGEST - 1) + "…",
}


@pytest.mark.parametrize("message", MASKED)
def test_what_differs_from_event_to_event_is_masked(message: str) -> None:
    assert mask(message) == MASKED[message]


def test_missing_message_is_empty() -> None:
    assert mask(None) == ""


PIECES = [*"abfx_-09 .'\"`@#…()[]{}*+?\\|^$\n\té", "0x", "12345678", "word "]
MESSAGES = strategies.lists(strategies.sampled_from(PIECES)).map("".join)


@given(MESSAGES)
def test_pattern_finds_every_message_that_was_masked_to_it(message: str) -> None:
    assert re.search(pattern_of(mask(message)), message)


@pytest.mark.parametrize(
    ("masked", "other"),
    [
        ("HTTP #", "HTTP 503: gone"),
        ("HTTP #", "HTTP error"),
        ("a.b #", "axb 5"),
        ("(x) #", "x 5"),
        ("no '…' here", "no it here"),
    ],
)
def test_pattern_finds_no_other_message(masked: str, other: str) -> None:
    assert re.search(pattern_of(masked), other) is None
