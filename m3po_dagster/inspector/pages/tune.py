"""The sliders: a recipe at another alpha and delta over the whole study, and saving that point as a recipe."""

from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.curves import HEIGHT, WIDTH
from m3po_dagster.inspector.query import QueryError, asked_page, default_recipe
from m3po_dagster.inspector.security import FormError, read_form
from m3po_dagster.inspector.site import Site
from m3po_dagster.inspector.text import reason
from m3po_dagster.inspector.tune import figure_rows, no_sliders, point
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.study import Recipe, load_study
from m3po_dagster.study_edit import add_recipe
from m3po_dagster.study_errors import StudyError

SLIDER_ALPHA, SLIDER_DELTA = 2.0, 1.0
"""Where the sliders end, unless the grid or the saved setting goes further; the number fields take any value."""


def tune(site: Site, fragment: bool = False):
    """GET /tune, and GET /tune/point: the part of the page that a moved slider replaces."""

    def view(request: Request, catalogue: Catalogue) -> Response:
        given = request.query_params
        recipe = given.get("recipe") or default_recipe(catalogue)
        if recipe not in catalogue.study.recipes:
            raise QueryError(f"there is no recipe {recipe!r}; there are {', '.join(catalogue.study.recipes)}")
        values = _values(site, catalogue, recipe, given)
        return site.render("tune_point.html" if fragment else "tune.html", **values)

    return site.page(view, fragment)


def _values(site: Site, catalogue: Catalogue, recipe: str, given) -> dict:
    selectable = [name for name, item in catalogue.study.recipes.items() if item.selection is not None]
    why_not = no_sliders(catalogue, recipe)
    values = {
        "here": "tune",
        "study_name": catalogue.study.name,
        "recipe": recipe,
        "recipes": selectable,
        "why_not": why_not,
        "missing": catalogue.missing,
        "stale": catalogue.stale,
        "move": None,
        "building": False,
        "saved_as": _in_file(site, given.get("saved", "")),
        "commands": catalogue.commands,
        "save_problem": "",
        "name": "",
        "token": site.token.value,
        "study_sha256": catalogue.study_sha256,
        "chart_size": (WIDTH, HEIGHT),
    }
    if why_not:
        return values
    moved = point(catalogue, recipe, given)
    saved = catalogue.study.recipes[recipe].selection
    grid = catalogue.study.sweep
    values |= {
        "saved": saved,
        "moved": moved,
        "alpha_end": max(SLIDER_ALPHA, *grid.alpha, saved.alpha, moved.alpha),
        "delta_end": max(SLIDER_DELTA, *grid.delta, saved.delta, moved.delta),
        "deltas": grid.delta,
        "point_query": urlencode({"recipe": recipe, "alpha": repr(moved.alpha), "delta": repr(moved.delta)}),
    }
    fronts = site.watch.fronts(catalogue, saved)
    if fronts is None:
        return values | {"building": True}
    move = site.watch.tuner.move(catalogue, recipe, fronts, moved, asked_page(given))
    return values | {"move": move, "figures": figure_rows(move)}


def save(site: Site):
    """POST /tune/save: adds the point as a recipe to the study file. GET leads back to the sliders."""

    def work(request: Request, form: dict[str, str]) -> Response:
        @site.page
        def view(request: Request, catalogue: Catalogue) -> Response:
            recipe, name = form.get("recipe", ""), form.get("name", "").strip()
            if recipe not in catalogue.study.recipes or no_sliders(catalogue, recipe):
                raise QueryError(f"recipe {recipe!r} has no alpha and delta to save")
            try:
                moved = _whole_point(catalogue, recipe, form)
                add_recipe(
                    site.watch.study_path,
                    name,
                    derived_recipe(catalogue.study.recipes[recipe], recipe, moved.alpha, moved.delta),
                    unchanged_since=form.get("study", ""),
                )
            except (StudyError, OSError, QueryError) as error:
                status = 400 if isinstance(error, QueryError) else 409
                # What can't be used stands in no field of the page: the sliders begin again at the saved setting.
                given = {} if isinstance(error, QueryError) else form
                values = _values(site, catalogue, recipe, given)
                return site.render("tune.html", status, **values | {"save_problem": reason(error), "name": name})
            site.watch.look_soon()
            query = {"recipe": recipe, "alpha": repr(moved.alpha), "delta": repr(moved.delta), "saved": name}
            return RedirectResponse(f"/tune?{urlencode(query)}", 303)

        return view(request)

    async def endpoint(request: Request) -> Response:
        if request.method != "POST":  # the address of a form that was refused, entered or loaded again
            return RedirectResponse("/tune", 303)
        try:
            form = await read_form(request)
        except FormError as error:
            return site.render("error.html", 400, title="This form is not taken", message=str(error))
        if not site.token.fits(form.get("token", "")):
            message = "It was not sent by this server's page, or the server was started anew: load the page again."
            return site.render("error.html", 403, title="This form is not taken", message=message)
        return await run_in_threadpool(work, request, form)

    return endpoint


def _whole_point(catalogue: Catalogue, recipe: str, form: dict[str, str]) -> SelectionSettings:
    """The point of a form that must name both values. Raises QueryError."""
    for name in ("alpha", "delta"):
        if not form.get(name, "").strip():
            raise QueryError(f"{name} is empty: give it a number")
    return point(catalogue, recipe, form)


def _in_file(site: Site, name: str) -> str:
    """The name, if the study file has a recipe of it now; else nothing."""
    if not name:
        return ""
    try:
        return name if name in load_study(site.watch.study_path).recipes else ""
    except StudyError:
        return ""


def derived_recipe(recipe: Recipe, name: str, alpha: float, delta: float) -> dict:
    """The recipe's settings as a study file has them, with another alpha and delta."""
    settings = recipe.model_dump(mode="json", exclude_defaults=True)
    selection = recipe.selection.model_dump(mode="json", exclude_defaults=True)
    training = recipe.training.model_dump(mode="json", exclude_defaults=True)
    return {
        "description": f"{name} with alpha {alpha:g} and delta {delta:g}",
        "selection": {"rule": "m3p", **selection, "alpha": alpha, "delta": delta},
        "training": {"kind": recipe.training.kind, **training},
        **{key: settings[key] for key in settings if key not in ("description", "selection", "training")},
    }
