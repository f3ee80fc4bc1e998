"""The images of prompts and benchmarks, confined to their roots, and the pages' own style sheet and script."""

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.image_files import ImageOutsideRoot, locate
from m3po_dagster.inspector.answers import image_root
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.pictures import LARGEST_SIDE, THUMBNAIL_SIDE, PictureError, picture
from m3po_dagster.inspector.site import STATIC, Site

_KINDS = {
    "style.css": "text/css; charset=utf-8",
    "inspector.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def prompt_image(site: Site):
    """GET /images/{prompt_id}, `small=1` for a thumbnail."""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        number = catalogue.find(request.path_params["prompt_id"])
        if number is None:
            return PlainTextResponse("no such prompt\n", 404)
        place = catalogue.place(number)
        source, uri = (column[place.position].as_py() for column in (place.shard.sources, place.shard.image_uris))
        images = DatasetImages(catalogue.study.dataset)
        return _sent(request, lambda: images.locate(source, uri), uri)

    return view


def benchmark_image(site: Site):
    """GET /benchmark-images/{benchmark}/{path}"""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        name = request.path_params["benchmark"]
        if name not in catalogue.study.benchmarks:
            return PlainTextResponse("no such benchmark\n", 404)
        root, uri = image_root(catalogue.study, name), request.path_params["uri"]
        return _sent(request, lambda: locate(root, uri), uri)

    return view


def _sent(request: Request, find: Callable[[], Path], uri: str) -> Response:
    side = THUMBNAIL_SIDE if request.query_params.get("small") else LARGEST_SIDE
    try:
        content, kind = picture(find(), uri, side)
    except (PictureError, ImageOutsideRoot) as error:
        return PlainTextResponse(f"{error}\n", 404)
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=300"})


def static_file(request: Request) -> Response:
    """GET /static/{name}"""
    name = request.path_params["name"]
    if name not in _KINDS:
        return PlainTextResponse("no such file\n", 404)
    return Response(
        (STATIC / name).read_bytes(), media_type=_KINDS[name], headers={"Cache-Control": "private, max-age=60"}
    )
