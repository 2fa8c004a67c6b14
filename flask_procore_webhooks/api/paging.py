"""Paging: the pages of a list of Procore, one after the other.

https://developers.procore.com/documentation/pagination
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs
from urllib.parse import urlsplit

from requests.utils import parse_header_links

from .answers import Answer
from .answers import items_of
from .answers import NotDocumented
from .transport import reading

#: Items of a page, Procore's greatest number.
PER_PAGE = 100
#: Pages of one list at most: a list that never ends is no list.
MOST_PAGES = 10_000
NUMBER = re.compile(r"\d{1,9}", re.ASCII)


def read_pages(
    ask: Callable[..., Answer], path: str, params: Mapping[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Yield each page of a list.

    :param ask: requests the page with the parameters ``params``.
    :raises BadAnswer: a page is no list, repeats the one before, or leads to an earlier
        one. The pages before have been yielded.
    """
    given = {"per_page": PER_PAGE, "page": 1, **params}
    former: list[dict[str, Any]] = []
    asked, seen = {_key(given)}, 0
    while True:
        answer = ask(params=given)
        with reading("GET", path, answer.status):
            items = items_of(answer.value)
            if items and items == former:
                if not _is_paged(answer) and len(items) < int(given["per_page"]):
                    return  # a list without pages
                raise NotDocumented(f"page {given['page']} repeats the one before")
            following = _next_page(answer, given, len(items), seen + len(items))
            if following is not None and _key(following) in asked:
                raise NotDocumented(f"page {given['page']} leads to an earlier one")
            if len(asked) >= MOST_PAGES:
                raise NotDocumented(f"the list has more than {MOST_PAGES} pages")
        seen += len(items)
        yield items
        if following is None:
            return
        asked.add(_key(following))
        given, former = following, items


def next_query(headers: Mapping[str, str]) -> dict[str, str | list[str]] | None:
    """The parameters of the next page, as ``Link`` names it; a list for a repeated one.

    Only these are followed: the token never goes to another host.

    :raises NotDocumented: the address of the page cannot be read.
    """
    links = parse_header_links(headers.get("Link", ""))
    url = next((each["url"] for each in links if each.get("rel") == "next"), None)
    if url is None:
        return None
    try:
        found = parse_qs(urlsplit(url).query, keep_blank_values=True)
    except ValueError:
        found = {"page": [""]}
    query = {key: v[0] if len(v) == 1 else v for key, v in found.items()}
    for name in ("page", "per_page"):
        if not NUMBER.fullmatch(str(query.get(name, "1"))):
            raise NotDocumented(f"Link names a {name} that is not a number")
    return query


def _next_page(
    answer: Answer, given: Mapping[str, Any], number: int, seen: int
) -> dict[str, Any] | None:
    """The parameters of the next page; ``None`` after the last one.

    Procore names it in ``Link``. Without one, the pages are counted until ``Total``
    objects were seen, until a page is shorter than ``Per-Page``, or until a page is
    empty: the server's greatest number may be less than was asked for.
    """
    if answer.next_page is not None:
        return {**given, **answer.next_page}
    if "Link" in answer.headers or not number:
        return None
    total, size = (answer.headers.get(name, "") for name in ("Total", "Per-Page"))
    if NUMBER.fullmatch(total):
        is_last = seen >= int(total)
    else:
        is_last = bool(NUMBER.fullmatch(size)) and number < int(size)
    return None if is_last else {**given, "page": int(given["page"]) + 1}


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What identifies a page: its parameters, numbers and texts alike."""
    return frozenset((name, str(value)) for name, value in params.items())


def _is_paged(answer: Answer) -> bool:
    """Whether the answer says that it is a page of a list."""
    return any(name in answer.headers for name in ("Link", "Total", "Per-Page"))
