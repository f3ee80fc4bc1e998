"""Benchmark answers before and after training, side by side."""

from starlette.requests import Request
from starlette.responses import Response

from m3po_dagster.inspector.answers import SHOWS, AnswerQuery
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.query import asked_page
from m3po_dagster.inspector.site import Site
from m3po_dagster.study import BASE_RECIPE


def answers(site: Site):
    """GET /answers"""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        query = AnswerQuery.parse(request.query_params.multi_items(), catalogue)
        return site.render(
            "answers.html",
            here="answers",
            study_name=catalogue.study.name,
            query=query,
            found=site.watch.answers.page(catalogue, query, asked_page(request.query_params)),
            recipes=[name for name in catalogue.study.recipes if name != BASE_RECIPE],
            benchmarks=list(catalogue.study.benchmarks),
            shows=SHOWS,
            stale=catalogue.stale,
            base=BASE_RECIPE,
        )

    return view
