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
    """An RFI as Procore had it when we last looked."""

    __tablename__ = "rfi"

    #: Procore's ids are kept as text, which JavaScript does not round.
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
