"""The pytest plug-in of flask-procore-webhooks: the fixture ``procore_webhooks``.

It stands outside the package, because pytest imports every plug-in at its start: the
package is imported when a test asks for the fixture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from flask_procore_webhooks.testing import Deliveries


@pytest.fixture
def procore_webhooks(
    app: Flask,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Deliveries:
    """Authentic deliveries to the app under test, which the fixture ``app`` returns.

    :raises pytest.UsageError: the inbox, or the database of ``db=`` or ``session=``, is
        a file in an instance folder that is not the test's, such as that of the app in
        development.
    """
    from flask_procore_webhooks.testing import Deliveries
    from flask_procore_webhooks.testing.files import instance_files

    for file, advice in instance_files(app):
        if not _is_temporary(file, pytestconfig.rootpath, tmp_path_factory):
            raise pytest.UsageError(
                f"The tests would write into {file}, the inbox of the app in"
                f" development. {advice}"
            )
    return Deliveries(app)


def _is_temporary(file: Path, project: Path, factory: pytest.TempPathFactory) -> bool:
    """Whether the file is in pytest's folder, or in the system's and not the project's.

    A project may itself be in a temporary folder.
    """
    if file.is_relative_to(factory.getbasetemp().resolve()):
        return True
    is_in_project = file.is_relative_to(project.resolve())
    return not is_in_project and file.is_relative_to(
        Path(tempfile.gettempdir()).resolve()
    )
