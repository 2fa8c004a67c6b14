"""The resources that send events, and the paths of records, as data.

The names and actions are those of ``GET .../webhooks/resources`` and of
https://developers.procore.com/assets/static/webhook-resources.csv. A fake has its own
copy, which a test may change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from typing import NamedTuple

ALL: Final = ("create", "update", "delete")
NO_DELETE: Final = ("create", "update")
CREATE: Final = ("create",)

#: Names of resources, each with the actions that have events.
Resources = dict[str, tuple[str, ...]]


def _names(text: str) -> Iterable[str]:
    return (name for line in text.splitlines() for name in _split(line))


def _split(line: str) -> Iterable[str]:
    return (name.strip() for name in line.split(",") if name.strip())


COMPANY_RESOURCES: Final[Resources] = {
    **dict.fromkeys(
        _names(
            """
            Change Order Change Reasons, Change Types, Company File Versions
            Company Files, Company Folders, Company Insurances, Departments
            ERP Requests, Form Templates, Line Item Types, Offices, Programs
            Project Bid Types, Project Owner Types, Project Regions, Project Stages
            Project Types, Standard Cost Codes
            """
        ),
        ALL,
    ),
    "Bids": ("update",),
    "Company Users": NO_DELETE,
    "Company Vendors": NO_DELETE,
    "Projects": NO_DELETE,
    "Standard Cost Code Lists": CREATE,
    "Timecard Time Types": ("create", "delete"),
    "Trades": ("create", "delete"),
}

PROJECT_RESOURCES: Final[Resources] = {
    **dict.fromkeys(
        _names(
            """
            RFIs, RFI Replies, Submittals, Submittal Packages, Punch Items
            Observation Items, Incidents, Meetings, Meeting Topics, Meeting Attendees
            Meeting Categories, Daily Logs, Daily Log/Entries, Accident Logs, Call Logs
            Daily Construction Report Logs, Delay Logs, Delivery Logs, Dumpster Logs
            Equipment Logs, Inspection Logs, Manpower Logs, Notes Logs
            Plan Revision Logs, Productivity Logs, Quantity Logs, Safety Violation Logs
            Scheduled Work Logs, Visitor Logs, Waste Logs, Work Logs, Change Events
            Change Event Line Items, Change Order Packages, Change Order Requests
            Potential Change Orders, Potential Change Order Line Items, Prime Contracts
            Prime Contract Line Items, Purchase Order Contracts
            Purchase Order Contract Line Items, Work Order Contracts
            Work Order Contract Line Items, Direct Costs, Direct Cost Line Items
            Budget Line Items, Budget Changes, Budget Modifications
            Payment Applications, Contract Payments, Draw Requests, RFQs, Drawings
            Drawing Sets, Drawing Areas, Drawing Uploads, Specification Sets
            Specification Areas, Specification Section Revisions
            Specification Section Divisions, Project Files, Project File Versions
            Project Folders, Images, Image Categories, Locations, Cost Codes, Sub Jobs
            Project Users, Project Vendors, Project Dates, Project Insurances, Tasks
            ToDos, Timecard Entries, Coordination Issues, Coordination Issue Activities
            BIM Models, BIM Model Revisions, BIM File Extractions, Forms
            Generic Tool Items, Site Instructions, Pdf Download Pages
            """
        ),
        ALL,
    ),
    "Budget View Snapshots": CREATE,
    "Inspection Checklists": NO_DELETE,
    "Markup Layers": NO_DELETE,
    "Observation Item Response Logs": CREATE,
    "RFQ Quotes": NO_DELETE,
    "RFQ Responses": NO_DELETE,
    "Specification Sections": NO_DELETE,
    "Task Items": NO_DELETE,
    "Weather Logs": NO_DELETE,
}


class Records(NamedTuple):
    """The REST calls for the records of one resource."""

    #: Paths of the list. The path of one record is that and its id. A path without
    #: ``<project>`` or ``<company>`` takes the scope as a parameter.
    paths: tuple[str, ...]
    #: The field of a request body that holds the record's fields.
    key: str


def _records(path: str, key: str, versions: str = "v1.0") -> Records:
    return Records(
        tuple(f"/rest/{version}/{path}" for version in versions.split()), key
    )


def _in_project(last: str, key: str, versions: str = "v1.0") -> Records:
    return _records(f"projects/<project>/{last}", key, versions)


def _in_company(last: str, key: str, versions: str = "v1.0") -> Records:
    return _records(f"companies/<company>/{last}", key, versions)


#: The paths of the records of each resource that has REST calls here.
RECORDS: Final[dict[str, Records]] = {
    "Change Events": _records("change_events", "change_event", "v1.0 v1.1"),
    "Change Order Packages": _records("change_order_packages", "change_order_package"),
    "Company Users": _in_company("users", "user", "v1.0 v1.3"),
    "Company Vendors": Records(
        ("/rest/v1.0/companies/<company>/vendors", "/rest/v1.0/vendors"), "vendor"
    ),
    "Coordination Issues": _records("coordination_issues", "coordination_issue"),
    "Direct Cost Line Items": _in_project("direct_costs/line_items", "line_item"),
    "Direct Costs": _in_project("direct_costs", "direct_cost", "v1.0 v1.1"),
    "Form Templates": _in_company("form_templates", "form_template"),
    "Forms": _in_project("forms", "form", "v1.0 v1.1"),
    "Generic Tool Items": _in_project(
        "correspondence_type_items", "correspondence_type_item"
    ),
    "Images": _records("images", "image"),
    "Incidents": _in_project("incidents", "incident"),
    "Inspection Checklists": _in_project("checklist/lists", "list"),
    "Locations": _in_project("locations", "location"),
    "Meetings": _in_project("meetings", "meeting"),
    "Observation Item Response Logs": _in_project(
        "observations/response_logs", "response_log"
    ),
    "Observation Items": _records("observations/items", "observation"),
    "Potential Change Orders": _records(
        "potential_change_orders", "potential_change_order"
    ),
    "Prime Contracts": _records("prime_contracts", "prime_contract"),
    "Project Users": _in_project("users", "user"),
    "Project Vendors": _in_project("vendors", "vendor"),
    "Projects": _records("projects", "project", "v1.0 v1.1"),
    "Punch Items": _records("punch_items", "punch_item", "v1.0 v1.1"),
    "Purchase Order Contracts": _records(
        "purchase_order_contracts", "purchase_order_contract"
    ),
    "RFIs": _in_project("rfis", "rfi", "v1.0 v1.1"),
    "Submittal Packages": _in_project("submittal_packages", "submittal_package"),
    "Submittals": _in_project("submittals", "submittal", "v1.1 v1.0"),
    "Tasks": _records("tasks", "task"),
    "Trades": _in_company("trades", "trade"),
    "Work Order Contracts": _records("work_order_contracts", "work_order_contract"),
}
