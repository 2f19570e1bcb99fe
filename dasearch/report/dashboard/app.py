"""The dashboard's routes. Pages are HTML that ``templates/dashboard.js`` keeps up to date; ``/api`` serves the same as JSON."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import plotly
from jinja2 import Environment
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dasearch.errors import DasearchError, NoStudies, WrongUse
from dasearch.layout import legend_of
from dasearch.report import compare
from dasearch.report.dashboard import pages, records
from dasearch.report.dashboard.live import is_silent, live_version, progress_sentences, share
from dasearch.report.dashboard.numbers import numbers
from dasearch.report.dashboard.reading import Missing, Reader, Snapshot, Unavailable, find_drawing
from dasearch.report.dashboard.security import Guard, Visitors, content_policy
from dasearch.report.document import result_figures, verdict_sentences
from dasearch.report.figures import FIGURES
from dasearch.report.figures.layouts import difference_in_words
from dasearch.report.figures.trials import TRIAL_FIGURES
from dasearch.report.page import templates_of
from dasearch.report.theme import LIGHT, THEMES, Theme, words

DEBUG = "DASEARCH_DEBUG"
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # the URL contains the version
PLOTLY_JS = f"plotly-{plotly.__version__}.js"
STATIC = {"dashboard.js": "text/javascript", "theme.js": "text/javascript", "dashboard.css": "text/css"}


Answer = Callable[[Request], Response]


class WrongQuery(WrongUse):
    """Invalid query parameters."""


class Endpoint(NamedTuple):
    """A JSON endpoint in the list of ``/api``."""

    path: str
    says: str
    query: str = ""


OF_FIGURES = f"A figure for plotly.js: {', '.join(FIGURES)}; of one or two trials: {', '.join(TRIAL_FIGURES)}."
ENDPOINTS = (
    Endpoint("/api/studies", "Every study: phase, trials by state, best score."),
    Endpoint("/api/compare", "Two studies side by side.", "before=STUDY&after=STUDY"),
    Endpoint(
        "/api/studies/{name:path}/trials/{number:int}",
        "One trial: layout, curve, epochs with losses and metrics, proposal, confirmation.",
    ),
    Endpoint("/api/studies/{name:path}/compare", "Two trials side by side.", "before=NUMBER&after=NUMBER"),
    Endpoint("/api/studies/{name:path}/figures/{figure}", OF_FIGURES, "theme=light|dark&trial=NUMBER"),
    Endpoint(
        "/api/studies/{name:path}/version",
        "A text that changes whenever any record of the study does; cheap to poll.",
    ),
    Endpoint(
        "/api/studies/{name:path}",
        "All of one study: verdict, trials, confirmation, results, settings, versions.",
    ),
)


class Dashboard:
    """Answers requests from the studies of a reader."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.templates = page_templates()
        self.static = {name: self.templates.get_template(name).render() for name in STATIC}
        self.plotly = get_plotlyjs()

    def routes(self) -> list[Route]:
        """All routes, longer paths first, because a study's name may contain slashes."""
        answers: dict[str, Answer] = {
            "/": self.studies_page,
            "/api": self.api_page,
            f"/static/{PLOTLY_JS}": self.plotly_js,
            "/static/{file}": self.static_file,
            "/compare": self.comparison_page,
            **dict(zip((endpoint.path for endpoint in ENDPOINTS), self._json_answers(), strict=True)),
            "/studies/{name:path}/trials/{number:int}": self.trial_page,
            "/studies/{name:path}/compare": self.trial_comparison_page,
            "/studies/{name:path}/figures/{figure}": self.figure_page,
            "/studies/{name:path}": self.study_page,
        }
        return [Route(place, self._without_traceback(answer)) for place, answer in answers.items()]

    def _json_answers(self) -> list[Answer]:
        """The handlers of the JSON endpoints, in the order of `ENDPOINTS`."""
        of_study = [self.trial_comparison_json, self.figure_json, self.version_json, self.study_json]
        return [self.studies_json, self.comparison_json, self.trial_json, *of_study]

    def _without_traceback(self, answer: Answer) -> Answer:
        def answered(request: Request) -> Response:
            try:
                return answer(request)
            except Exception as error:
                return self.problem(request, error)

        return answered

    # --- pages ----------------------------------------------------------------------------------------------------

    def studies_page(self, request: Request) -> Response:
        """The list of studies."""
        studies = self.reader.studies()
        version = " ".join(map(live_version, studies))
        table = pages.studies_table(studies)
        return self._page("studies.html", table=table, first=self.reader.first, version=version, watch="/api/studies")

    def study_page(self, request: Request) -> Response:
        """A study: verdict, figures and tables."""
        snapshot = self._snapshot(request)
        view = snapshot.view
        return self._study_page(
            "study.html",
            snapshot,
            verdict=verdict_sentences(view),
            first=[*result_figures(view), "best-so-far", "layout"],
            silent=is_silent(snapshot.progress),
            progress=progress_sentences(view, snapshot.progress),
            share=share(view),
            sections=pages.study_sections(view),
            compared=pages.worth_comparing(view),
        )

    def trial_page(self, request: Request) -> Response:
        """A trial: layout, curves, proposal and epochs."""
        snapshot = self._snapshot(request)
        view, trial = snapshot.view, snapshot.trial(request.path_params["number"])
        return self._study_page(
            "trial.html",
            snapshot,
            trial=trial,
            facts=pages.trial_facts(view, {f"trial {trial.number}": trial}),
            map=pages.layout_map(view.space, trial.layout) if trial.layout else [],
            legend=legend_of(view.space.file.alphabet),
            epochs=pages.epochs_table(trial),
            proposal=pages.proposal_tables(view, trial),
            neighbours=pages.neighbours(view, trial),
            partners=pages.partners(view, trial),
        )

    def trial_comparison_page(self, request: Request) -> Response:
        """Two trials of a study side by side."""
        snapshot = self._snapshot(request)
        difference = snapshot.difference(_number(request, "before"), _number(request, "after"))
        trials = {f"trial {trial.number}": trial for trial in (difference.before, difference.after)}
        return self._study_page(
            "compare_trials.html",
            snapshot,
            found=difference,
            words=difference_in_words(difference),
            facts=pages.trial_facts(snapshot.view, trials),
            sites=compare.sites_table(snapshot.view, difference.sites, tuple(trials)),
        )

    def comparison_page(self, request: Request) -> Response:
        """Two studies side by side."""
        names = [_text(request, key) for key in ("before", "after")]
        first, second = (self.reader.snapshot(name) for name in names)
        difference = compare.compare_studies(first.view, second.view)
        content = {"tables": compare.study_tables(difference), "sentences": compare.study_sentences(difference)}
        version = " ".join(live_version(one.progress) for one in (first, second))
        watch = " ".join(path("api", "studies", name, "version") for name in names)
        return self._page("compare_studies.html", names=names, **content, version=version, watch=watch)

    def figure_page(self, request: Request) -> Response:
        """One figure with a table of its numbers."""
        snapshot = self._snapshot(request)
        key, trials = request.path_params["figure"], _trials(request)
        drawing = find_drawing(key)
        figure = snapshot.figure(key, trials, LIGHT)
        table = numbers(figure, f"The numbers of: {drawing.title}")
        return self._study_page(
            "figure.html", snapshot, key=key, drawing=drawing, trials=trials, words=words(figure), table=table
        )

    def api_page(self, request: Request) -> Response:
        """The list of JSON endpoints."""
        return self._page("api.html", endpoints=ENDPOINTS, version="", watch=None)

    # --- JSON -----------------------------------------------------------------------------------------------------

    def studies_json(self, request: Request) -> Response:
        """Every study with its progress."""
        studies = self.reader.studies()
        version = " ".join(map(live_version, studies))
        return answer({"version": version, "studies": [records.progress_record(one) for one in studies]})

    def study_json(self, request: Request) -> Response:
        """All records of a study."""
        return answer(records.study_record(self._snapshot(request)))

    def version_json(self, request: Request) -> Response:
        """A text that changes with every record of a study."""
        return answer({"version": live_version(self.reader.progress(request.path_params["name"]))})

    def trial_json(self, request: Request) -> Response:
        """All records of a trial."""
        snapshot = self._snapshot(request)
        return answer(records.trial_record(snapshot.view, snapshot.trial(request.path_params["number"])))

    def trial_comparison_json(self, request: Request) -> Response:
        """Two trials of a study side by side."""
        snapshot = self._snapshot(request)
        difference = snapshot.difference(_number(request, "before"), _number(request, "after"))
        return answer(compare.trial_difference_record(snapshot.view, difference))

    def comparison_json(self, request: Request) -> Response:
        """Two studies side by side."""
        first, second = (self.reader.snapshot(_text(request, key)).view for key in ("before", "after"))
        return answer(compare.study_difference_record(compare.compare_studies(first, second)))

    def figure_json(self, request: Request) -> Response:
        """A figure as JSON for plotly.js."""
        figure = self._snapshot(request).figure(request.path_params["figure"], _trials(request), _theme(request))
        return Response(figure.to_json(), media_type="application/json")

    # --- files ----------------------------------------------------------------------------------------------------

    def plotly_js(self, request: Request) -> Response:
        """The script plotly.js."""
        return Response(self.plotly, media_type="text/javascript", headers=FOREVER)

    def static_file(self, request: Request) -> Response:
        """A style sheet or script of the dashboard."""
        name = request.path_params["file"]
        if name not in STATIC:
            raise HTTPException(404)
        return Response(self.static[name], media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    # --- errors ---------------------------------------------------------------------------------------------------

    def problem(self, request: Request, error: Exception) -> Response:
        """Answer an error with one sentence, as a page or as JSON, never a traceback."""
        status, sentence = told(error)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR and os.environ.get(DEBUG):
            traceback.print_exception(error)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": sentence}, status)
        page = self._page("problem.html", title=HTTPStatus(status).phrase, sentence=sentence, version="", watch=None)
        page.status_code = status
        return page

    def _snapshot(self, request: Request) -> Snapshot:
        return self.reader.snapshot(request.path_params["name"])

    def _study_page(self, template: str, snapshot: Snapshot, **content: Any) -> Response:
        watch = path("api", "studies", snapshot.view.name, "version")
        version = live_version(snapshot.progress)
        return self._page(template, view=snapshot.view, version=version, watch=watch, **content)

    def _page(self, template: str, **content: Any) -> Response:
        return HTMLResponse(self.templates.get_template(template).render(**content))


def application(reader: Reader, visitors: Visitors | None) -> Starlette:
    """The dashboard as an ASGI application; ``visitors`` is None where everyone on this machine has access."""
    dashboard = Dashboard(reader)
    guard = Middleware(Guard, visitors=visitors, policy=content_policy(dashboard.plotly))
    handlers: Mapping[Any, Any] = {HTTPException: dashboard.problem}  # for a URL without a route
    return Starlette(routes=dashboard.routes(), middleware=[guard], exception_handlers=handlers)


def told(error: Exception) -> tuple[int, str]:
    """An error's status and sentence."""
    if isinstance(error, HTTPException):
        return error.status_code, "There is no such page; start from the list of studies."
    kinds = {Missing: 404, WrongQuery: 400, Unavailable: 503, NoStudies: 503}
    if isinstance(error, DasearchError):
        return kinds.get(type(error), 500), str(error)
    return 500, f"This cannot be shown ({type(error).__name__}); the command `dasearch report` may show more."


def page_templates() -> Environment:
    """The Jinja2 environment of this package's templates."""
    templates = templates_of("dasearch.report.dashboard")
    templates.globals.update(url=path, drawing=find_drawing, plotly_js=PLOTLY_JS, themes=THEMES, shades=pages.shades())
    return templates


def path(*parts: object, **query: object) -> str:
    """A URL of this site, with names percent-encoded."""
    url = "/" + "/".join(quote(str(part), safe="") for part in parts)
    return f"{url}?{urlencode(query, doseq=True)}" if query else url


def answer(record: Any) -> Response:
    """A JSON response."""
    return JSONResponse(records.finite(record))


def _text(request: Request, key: str) -> str:
    if key not in request.query_params:
        raise WrongQuery(f"give {key}, as in ?before=FIRST&after=SECOND")
    return request.query_params[key]


def _number(request: Request, key: str) -> int:
    return whole(_text(request, key))


def _trials(request: Request) -> list[int]:
    return [whole(text) for text in request.query_params.getlist("trial")]


def whole(text: str) -> int:
    """Parse a trial's number.

    Raises:
        WrongQuery: if it is not one.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WrongQuery(f"{text!r} is not a trial's number; give one such as 3")
    return int(text)


def _theme(request: Request) -> Theme:
    name = request.query_params.get("theme", LIGHT.name)
    if name not in THEMES:
        raise WrongQuery(f"there is no theme {name!r}; themes are {', '.join(THEMES)}")
    return THEMES[name]
