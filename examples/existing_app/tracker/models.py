from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Rfi(Base):
    """An RFI in its last fetched state."""

    __tablename__ = "rfi"

    #: Procore's id as text: JavaScript rounds large numbers.
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    #: Time of the last change at Procore, ISO 8601 as sent.
    updated_at: Mapped[str] = mapped_column(String(40))
