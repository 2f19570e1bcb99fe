"""Reports, figures, tables and the dashboard of a study."""

from enum import StrEnum


class Format(StrEnum):
    """File format of a report."""

    HTML = "html"
    MD = "md"
