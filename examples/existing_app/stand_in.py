"""A stand-in for Procore's REST API, to try the example without an account."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/rest/v1.0/projects/<project_id>/rfis/<rfi_id>")
def show_rfi(project_id: str, rfi_id: str) -> dict[str, str]:
    return {
        "id": rfi_id,
        "subject": "Where does the duct go?",
        "status": "open",
        "updated_at": "2026-11-26T12:00:00Z",
    }
