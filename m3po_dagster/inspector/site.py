"""What all pages share: the watched study, the templates, and the turning of errors into pages."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from urllib.parse import quote

import jinja2
import pyarrow as pa
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from m3po_dagster.inspector import text
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.query import PromptLists, QueryError
from m3po_dagster.inspector.security import Token
from m3po_dagster.inspector.watch import Watch

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"


class NotFound(LookupError):
    """What the address names is not there; the message is a sentence."""


class Site:
    """One inspector: a study that is watched, and what its pages keep between requests."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.token = Token()
        self.prompts = PromptLists()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "visible": text.visible,
            "cut": text.cut,
            "cut_off": text.cut_off,
            "number": text.number,
            "figure": text.figure,
            "share": text.share,
            "count": text.count,
            "words": text.words,
            "segment": lambda value: quote(str(value), safe=""),
            "zip_same": lambda names: [(name, name) for name in names],
        }

    def render(self, template: str, status: int = 200, **values: object) -> HTMLResponse:
        """A page; `study`, `progress` and `problem` are there for all of them."""
        shown = {"progress": self.watch.progress, "problem": self.watch.problem, "study_name": "", "here": "", **values}
        return HTMLResponse(self._templates.get_template(template).render(shown), status)

    def page(
        self, view: Callable[[Request, Catalogue], Response], fragment: bool = False
    ) -> Callable[[Request], Response]:
        """A view as an endpoint. While nothing is read yet it is a page that says so; errors become pages too.

        Those of a `fragment`, which is put into a page, are one paragraph.
        """
        error_page = "error_fragment.html" if fragment else "error.html"

        @wraps(view)
        def endpoint(request: Request) -> Response:
            catalogue = self.watch.catalogue()
            if catalogue is None:
                if fragment:
                    message = self.watch.problem or "The study is being read."
                    return self.render(error_page, 503, message=message)
                return self.render("reading.html", 503)
            name = catalogue.study.name
            try:
                return view(request, catalogue)
            except QueryError as error:
                return self.render(error_page, 400, title="This can't be shown", message=str(error), study_name=name)
            except NotFound as error:
                return self.render(error_page, 404, title="Not here", message=str(error), study_name=name)
            except (OSError, ValueError, IndexError, pa.ArrowException) as error:
                self.watch.look_soon()
                message = f"{_sentence(error)} What is left is read anew: load the page again."
                return self.render(error_page, 500, title="This can't be read", message=message, study_name=name)

        return endpoint


def _sentence(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "A file of the store that was there before is gone."
    return f"{text.reason(error)}."
