"""How a study is shown to people."""

from enum import StrEnum


class Format(StrEnum):
    """Of a report."""

    HTML = "html"
    MD = "md"
