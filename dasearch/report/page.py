"""A report as one file: HTML that works offline, or Markdown without figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dasearch.errors import WrongUse
from dasearch.folders import write_text
from dasearch.report import Format
from dasearch.report.document import Section, Table, sections
from dasearch.report.figures import FIGURES
from dasearch.report.theme import LIGHT, THEMES, words
from dasearch.report.view import StudyView


class Drawn(NamedTuple):
    """A figure as embedded in a page, which supplies its template."""

    key: str
    title: str
    shows: str
    words: str
    height: int
    empty: bool
    spec: Markup


def report(view: StudyView, form: Format) -> str:
    """The text of a report in a format."""
    return as_html(view) if form is Format.HTML else as_markdown(view)


def as_html(view: StudyView) -> str:
    """One page with plotly.js, every figure and every table in it."""
    page, parts = templates_of("dasearch.report").get_template("report.html"), sections(view)
    return page.render(
        view=view,
        sections=parts,
        figures={key: embedded(view, key) for part in parts for key in part.figures},
        templates=in_script({name: theme.template.to_plotly_json() for name, theme in THEMES.items()}),
        themes=THEMES,
        plotly=Markup(get_plotlyjs()),
    )


def templates_of(package: str) -> Environment:
    """Jinja2 over a package's templates, with escaping."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded(view: StudyView, key: str) -> Drawn:
    """A figure of `FIGURES` drawn for a page; traces are the same under every theme, so one drawing serves all."""
    title, shows, draw = FIGURES[key]
    figure = draw(view, LIGHT)
    spec = in_script(_without_template(figure))
    return Drawn(key, title, shows, words(figure), int(figure.layout.height), empty=not figure.data, spec=spec)


def _without_template(figure: go.Figure) -> Any:
    spec = json.loads(figure.to_json())
    del spec["layout"]["template"]
    return spec


def in_script(value: Any) -> Markup:
    """JSON that cannot close the enclosing script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def as_markdown(view: StudyView) -> str:
    """The report as Markdown: text and tables, with a sentence for each figure."""
    parts = [f"# {_plain(view.name)}: dasearch report"]
    for section in sections(view):
        parts += [f"## {section.title}", *map(_plain, section.sentences), *_figure_words(view, section)]
        parts += [_markdown_table(table) for table in section.tables if table.rows]
        parts += [f"{_plain(listing.caption)}:\n\n```\n{listing.text.rstrip()}\n```" for listing in section.listings]
    return "\n\n".join(parts) + "\n"


def _figure_words(view: StudyView, section: Section) -> list[str]:
    lines = [f"- {FIGURES[key].title}: {_plain(words(FIGURES[key].draw(view, LIGHT)))}" for key in section.figures]
    return ["\n".join(lines)] if lines else []


def _markdown_table(table: Table) -> str:
    rows = [table.headings, ("---",) * len(table.headings), *table.rows]
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    return f"**{_plain(table.caption)}**\n\n" + "\n".join(lines)


def _plain(text: str) -> str:
    """Text escaped for Markdown."""
    flat = " ".join(text.split())
    for mark in "\\`*_|[]":
        flat = flat.replace(mark, f"\\{mark}")
    return flat.replace("&", "&amp;").replace("<", "&lt;")


def write_report(view: StudyView, path: Path, form: Format) -> Path:
    """Write a report atomically.

    Raises:
        WrongUse: if the path is a folder, or cannot be written.
    """
    if path.is_dir():
        raise WrongUse(f"{path} is a folder; name a file in it, as in {path / f'report.{form.value}'}")
    text = report(view, form)
    _write(path, text)
    return path


def write_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure as a page that works offline.

    Raises:
        WrongUse: if the path cannot be written.
    """
    config = {"displaylogo": False, "showSendToCloud": False}  # by default a button sends the data to plotly's servers
    _write(path, figure.to_html(include_plotlyjs=True, config=config))


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise WrongUse(f"{path} cannot be written ({error.strerror}); choose another place") from None
