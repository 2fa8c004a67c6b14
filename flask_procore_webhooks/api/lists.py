"""Procore's list calls that filter by update time, by the resource names of webhooks.

The paths and parameters are those of Procore's OpenAPI document as of 2026-04, by way
of github.com/TylerIlunga/procore-mcp-server (data/endpoint-details, commit 1d40aa3,
2026-04-13). The resource names are those of the webhook catalogue, as listed in
github.com/PipedreamHQ/pipedream (components/procore/common/resource-names.mjs).

Every call here takes ``page`` and ``per_page``, answers a bare JSON array, and
documents ``id`` and ``updated_at`` in its items. The value of the filter is a range of
two ISO 8601 times around three dots, as in
``2016-09-23T16:30:00Z...2016-09-23T17:00:00Z``. Deleted items are not asked for: where
Procore lists them, it is in a recycle bin or by ``filters[include_deleted]``.

A resource is missing if its list has no such filter (daily logs, meetings, budgets,
payment applications), needs the id of a parent (line items, RFI replies, change order
requests, RFQs), or returns items of another kind or scope (drawings, files, timecard
entries).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResourceList:
    """A list call of Procore's REST API.

    :param path: the path, with ``{project_id}`` or ``{company_id}`` in it or neither.
    :param query: the ids that go into the query string.
    :param extra: parameters without which the list leaves items out.
    :param filter: the parameter with the range of update times.
    """

    path: str
    query: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    filter: str = "filters[updated_at]"


#: The list call of each resource, by the resource's name in a webhook.
LISTS: dict[str, ResourceList] = {
    # of a company
    "Company Users": ResourceList("/rest/v1.3/companies/{company_id}/users"),
    "Company Vendors": ResourceList("/rest/v1.0/vendors", ("company_id",)),
    "Form Templates": ResourceList("/rest/v1.0/companies/{company_id}/form_templates"),
    "Projects": ResourceList(
        "/rest/v1.1/projects",
        ("company_id",),
        # Without it the list has active projects only.
        extra=(("filters[by_status]", "All"),),
    ),
    "Trades": ResourceList("/rest/v1.0/companies/{company_id}/trades"),
    # of a project
    "Change Events": ResourceList("/rest/v1.1/change_events", ("project_id",)),
    "Change Order Packages": ResourceList(
        "/rest/v1.0/change_order_packages", ("project_id",)
    ),
    "Coordination Issues": ResourceList(
        "/rest/v1.0/coordination_issues", ("project_id",)
    ),
    "Direct Cost Line Items": ResourceList(
        "/rest/v1.0/projects/{project_id}/direct_costs/line_items"
    ),
    "Direct Costs": ResourceList("/rest/v1.1/projects/{project_id}/direct_costs"),
    "Forms": ResourceList("/rest/v1.1/projects/{project_id}/forms"),
    "Generic Tool Items": ResourceList(
        "/rest/v1.0/projects/{project_id}/correspondence_type_items"
    ),
    "Images": ResourceList("/rest/v1.0/images", ("project_id",)),
    "Incidents": ResourceList("/rest/v1.0/projects/{project_id}/incidents"),
    "Inspection Checklists": ResourceList(
        "/rest/v1.0/projects/{project_id}/checklist/lists"
    ),
    "Locations": ResourceList("/rest/v1.0/projects/{project_id}/locations"),
    "Observation Item Response Logs": ResourceList(
        "/rest/v1.0/projects/{project_id}/observations/response_logs"
    ),
    "Observation Items": ResourceList("/rest/v1.0/observations/items", ("project_id",)),
    "Potential Change Orders": ResourceList(
        "/rest/v1.0/potential_change_orders", ("project_id",)
    ),
    "Prime Contracts": ResourceList("/rest/v1.0/prime_contracts", ("project_id",)),
    "Project Users": ResourceList("/rest/v1.0/projects/{project_id}/users"),
    "Punch Items": ResourceList("/rest/v1.1/punch_items", ("project_id",)),
    "Purchase Order Contracts": ResourceList(
        "/rest/v1.0/purchase_order_contracts", ("project_id",)
    ),
    "RFIs": ResourceList("/rest/v1.0/projects/{project_id}/rfis"),
    "Submittal Packages": ResourceList(
        "/rest/v1.0/projects/{project_id}/submittal_packages"
    ),
    "Submittals": ResourceList("/rest/v1.1/projects/{project_id}/submittals"),
    "Tasks": ResourceList("/rest/v1.0/tasks", ("project_id",)),
    "Work Order Contracts": ResourceList(
        "/rest/v1.0/work_order_contracts", ("project_id",)
    ),
}
