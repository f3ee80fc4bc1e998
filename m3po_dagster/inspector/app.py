"""The inspector as a web application: which page is at which address."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from m3po_dagster.inspector.pages.answers import answers
from m3po_dagster.inspector.pages.images import benchmark_image, prompt_image, static_file
from m3po_dagster.inspector.pages.overview import overview
from m3po_dagster.inspector.pages.prompts import answer_text, prompt_list, prompt_page
from m3po_dagster.inspector.pages.tune import save, tune
from m3po_dagster.inspector.security import Guard
from m3po_dagster.inspector.site import Site
from m3po_dagster.inspector.watch import Watch

HOST = "127.0.0.1"


def hosts(port: int) -> tuple[str, ...]:
    """The Host headers that a server on this port answers to."""
    with_port = (f"{HOST}:{port}", f"localhost:{port}")
    # A browser leaves out the port of http.
    return (*with_port, HOST, "localhost") if port == 80 else with_port


def build_app(watch: Watch, port: int) -> ASGIApp:
    """The application over a watched study, to be served on 127.0.0.1 and this port."""
    site = Site(watch)

    def not_found(request: Request, error: Exception) -> Response:
        return site.render("error.html", 404, title="Not here", message="There is no such page.")

    app = Starlette(
        routes=[
            Route("/", overview(site)),
            Route("/prompts", prompt_list(site)),
            Route("/prompts/{prompt_id}", prompt_page(site)),
            Route("/prompts/{prompt_id}/answers/{k}", answer_text(site)),
            Route("/tune", tune(site)),
            Route("/tune/point", tune(site, fragment=True)),
            Route("/tune/save", save(site), methods=["GET", "POST"]),
            Route("/answers", answers(site)),
            Route("/images/{prompt_id}", prompt_image(site)),
            Route("/benchmark-images/{benchmark}/{uri:path}", benchmark_image(site)),
            Route("/static/{name}", static_file),
        ],
        exception_handlers={404: not_found},
    )
    # Outermost, so that a page about an error in the program has the headers too.
    return Guard(app, hosts(port))
