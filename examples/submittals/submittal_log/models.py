from __future__ import annotations

from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Submittal(Base):
    """A submittal in the state of its last read."""

    __tablename__ = "submittal"

    #: Procore's id as text: JavaScript rounds large numbers.
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))
    title: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    #: Time of the last change at Procore, ISO 8601 as sent.
    updated_at: Mapped[str] = mapped_column(String(40))

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "title", "status", "updated_at")
        return {name: getattr(self, name) for name in names}
