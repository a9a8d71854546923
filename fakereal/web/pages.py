"""For people: one page, whose cards the server renders, with scripts (one by one) and without (all at once)."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template, request
from markdown_it import MarkdownIt
from markupsafe import Markup

from fakereal.preprocessing import FORMATS
from fakereal.web import presenting
from fakereal.web.analysis import Analysis
from fakereal.web.api import predictor
from fakereal.web.uploads import uploads

routes = Blueprint("pages", __name__)
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")  # any HTML in a card is shown as text


@routes.get("/")
def home() -> str:
    """Shows the page."""
    return page([])


@routes.post("/")
def home_with_results() -> str:
    """Shows the page with the pictures of a form sent without scripts."""
    return page(_analyses())


@routes.post("/cards")
def cards() -> Response:
    """Returns the cards alone, for the page's script."""
    return make_response(render_template("cards.html", analyses=_analyses(), limits=predictor().limits))


@routes.get("/model")
def model() -> str:
    """Shows what is known about the model."""
    card = predictor().card
    return render_template("model.html", model=predictor().model, card=card and Markup(_MARKDOWN.render(card)))


def page(analyses: list[Analysis], problem: str | None = None) -> str:
    """Returns the page with results, or with the sentence that says why there are none."""
    return render_template(
        "index.html",
        analyses=analyses,
        problem=problem,
        model=predictor().model,
        limits=predictor().limits,
        formats=FORMATS,
        document=presenting.document(analyses) if analyses else None,
    )


def _analyses() -> list[Analysis]:
    found = predictor()
    analyses = found.analyst.analyse(uploads(found.limits.files), explain=True, stability="stability" in request.form)
    found.metrics.count(analyses)
    return analyses
