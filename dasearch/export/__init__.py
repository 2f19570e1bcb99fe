"""A trained layout in forms that other trainers and servers open; each is proven equal by tests that open it as they do."""

from __future__ import annotations

from dasearch.export.formats import FORMATS, export, export_study, text_of_study
from dasearch.export.options import ExportOptions
from dasearch.export.pick import known_pick

__all__ = ["FORMATS", "ExportOptions", "export", "export_study", "known_pick", "text_of_study"]
