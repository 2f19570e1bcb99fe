"""A trained layout in formats that other trainers and servers open; tests open each as they do and check for equal scores."""

from __future__ import annotations

from dasearch.export.formats import FORMATS, export, export_study, text_of_study
from dasearch.export.options import ExportOptions
from dasearch.export.pick import known_pick

__all__ = ["FORMATS", "ExportOptions", "export", "export_study", "known_pick", "text_of_study"]
