"""The report and the page, made from one table: every recipe and figure is on both, and nothing is fetched."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from boards import benchmarks, results
from PIL import Image

from m3po_dagster.assets import leaderboard as leaderboard_asset
from m3po_dagster.assets.pictures import figure_picture
from m3po_dagster.evaluation import leaderboard_plots as plots
from m3po_dagster.evaluation.board import Board, Curve, Question, columns_of
from m3po_dagster.evaluation.leaderboard import leaderboard
from m3po_dagster.evaluation.leaderboard_costs import recipe_table
from m3po_dagster.evaluation.leaderboard_markdown import headline_markdown, report
from m3po_dagster.evaluation.leaderboard_page import page

SVG = "{http://www.w3.org/2000/svg}"


def cost(stage, part, hours, peak, recipes=1, money=None, lost=0, also=()):
    recipe, _, seed = part.partition("|")
    return {
        "stage": stage, "part": part, "device": "a GPU", "recipe": recipe or None, "seed": int(seed) if seed else None,
        "recipes": recipes, "trained_for": [part, *also] if seed else [],
        "objects": 2, "lost": lost, "device_hours": hours, "peak_memory": peak, "money": money,
    }  # fmt: skip


COSTS = [
    cost("candidates", "", 8.0, 16_000_000_000, recipes=2),
    cost("mas_table", "", 2.0, 4_000_000_000, recipes=2, money=1.25),
    *(cost("adapter", f"m3po|{seed}", hours, 14_000_000_000) for seed, hours in enumerate((9.0, 10.0, 11.0))),
    cost("adapter", "alpha0|0", 10.0, 13_000_000_000),
    cost("benchmark_answers", "base", 0.5, None),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Board:
    suite = benchmarks(tmp_path_factory.mktemp("benchmarks"))
    table = leaderboard(*results(suite), suite, ["m3po"], resamples=500)
    return Board(
        "small",
        table,
        columns_of(suite),
        ["base", "m3po"],
        {"m3po": "as in the <paper>"},
        [Question("Does the confidence term help?", "m3po", "alpha0")],
        [Curve("alpha", "m3po", {"alpha0": 0.0, "m3po": 0.5})],
        ["base", "alpha0", "m3po"],
        ["read & weep"],
    )


@pytest.fixture(scope="module")
def shown(board) -> str:
    """The page."""
    return page(board, COSTS, None)


class Tables(HTMLParser):
    """The body rows of each table by its id, each a list of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.pictures, self.addresses = {}, [], []
        self._table, self._body, self._cell = None, False, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.pictures.append(found)
        elif tag == "table":
            self._table = self.rows.setdefault(found["id"], [])
        elif tag in ("tbody", "thead"):
            self._body = tag == "tbody"
        elif tag == "tr" and self._body:
            self._table.append([])
        elif tag in ("td", "th") and self._body:
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self._table[-1].append(self._cell)
            self._cell = None


def markdown_rows(text: str, after: str) -> list[list[str]]:
    """The lines of the first table after a heading, without its head."""
    lines = text[text.index(after) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| "))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("| "):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


def test_the_headlines_are_a_markdown_table_of_every_recipe(board):
    lines = headline_markdown(board).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert len({len(row) for row in cells}) == 1
    assert cells[0][:3] == ["recipe", "POPE accuracy ↑", "POPE adversarial ↑"]
    assert "scenes: CHAIR-i ↓" in cells[0]
    assert [row[0] for row in cells[2:]] == ["base", "m3po", "same", "alpha0"]
    assert [row[1] for row in cells[2:]] == ["50.0", "77.5 ± 2.5 **", "50.0", "59.2 ± 1.4"]
    assert lines[-1] == "read & weep"


def test_the_report_has_every_part(board):
    text = report(board, COSTS, {"requests": 1200, "cost": 3.5})
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert heads == [
        "small: the leaderboard", "What it says", "Against base", "Against m3po", "The ablation", "The curve of alpha",
        "What it took", "About the benchmarks",
    ]  # fmt: skip
    assert "**Does the confidence term help?** Yes, on" in text
    assert [row[0] for row in markdown_rows(text, "## Against m3po")] == ["base", "same", "alpha0"]
    assert [row[:2] for row in markdown_rows(text, "## The curve of alpha")] == [["0", "alpha0"], ["0.5", "m3po"]]
    assert [row[0] for row in markdown_rows(text, "## The ablation")] == ["base", "alpha0", "m3po"]
    assert "The ledger holds 1,200 requests of this study to judges, cost 3.5000." in text


def test_costs_as_in_table_7(board):
    text = report(board, [*COSTS, cost("logprob_table", "", 0.0, None, recipes=2, lost=1)], None)
    assert markdown_rows(text, "## What it took") == [
        ["m3po", "10", "10", "20", "16.00 / 14.00"],
        ["alpha0", "10", "10", "20", "16.00 / 13.00"],
    ]
    stages = markdown_rows(text, "| stage |")
    assert ["training", "m3po, 3 seeds", "a GPU", "30", "14.00", "–"] in stages
    assert ["scoring candidates (MAS)", "2 recipes", "a GPU", "2", "4.00", "1.2500"] in stages
    assert ["answering benchmarks", "base", "a GPU", "0.5", "–", "–"] in stages
    assert "shared by 2 recipes and counted once" in text and "1 results are no longer in the store" in text
    assert "ledger" not in text


def test_a_recipe_s_line_is_of_its_own_seeds_whoever_else_has_them():
    rows = [
        cost("candidates", "", 1.0, None, recipes=2),
        cost("adapter", "alpha0|0", 1.0, 10**9, also=["twin|0"]),
        cost("adapter", "twin|1", 5.0, 2 * 10**9),
    ]
    assert recipe_table(rows, ["base", "alpha0", "twin"]) == [
        ("alpha0", "1", "1", "2", "– / 1.00"),
        ("twin", "1", "3", "4", "– / 2.00"),
    ]
    drawn = plots.svg(plots.costs(rows, ["base", "alpha0", "twin"]))
    assert "alpha0" in drawn and "twin" in drawn and ">base<" not in drawn


def test_the_page_shows_what_the_report_does(board, shown):
    written, shown = report(board, COSTS, None), Tables(shown)
    for name, heading in (
        ("headlines", "# small"),
        ("against-base", "## Against base"),
        ("against-m3po", "## Against m3po"),
        ("ablation", "## The ablation"),
        ("curve-alpha", "## The curve of alpha"),
        ("costs-recipes", "## What it took"),
        ("costs-stages", "| stage |"),
    ):
        assert shown.rows[name] == markdown_rows(written, heading), name
    assert len(shown.rows["every"]) == len(board.table)


def test_the_page_fetches_nothing_and_says_what_its_pictures_show(shown):
    found = Tables(shown)
    assert len(found.pictures) == 5
    assert all(address.startswith("data:") for address in found.addresses)
    assert "<script" not in shown and "@import" not in shown and "url(" not in shown
    for picture in found.pictures:
        assert len(picture["alt"]) > 20
        drawn = base64.b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(drawn).tag == f"{SVG}svg"


def test_what_a_study_says_is_text_on_the_page(shown):
    assert "as in the &lt;paper&gt;" in shown and "read &amp; weep" in shown
    assert "<strong>Does the confidence term help?</strong>" in shown
    assert "<code>**</code>: differs from base" in shown


def test_the_pictures_in_the_ui_are_those_of_the_page(board, monkeypatch):
    """Every plot of the page but the costs, which the UI has as a table: the same figures, drawn as small pictures."""
    drawn, written = [], []
    svg, picture = plots.svg, figure_picture
    monkeypatch.setattr(plots, "svg", lambda figure: written.append(svg(figure)) or written[-1])
    monkeypatch.setattr(
        leaderboard_asset, "figure_picture", lambda figure: drawn.append(svg(figure)) or picture(figure)
    )
    shown = leaderboard_asset.pictures_of(board)
    page(board, [], None)
    assert [*shown] == ["differences to base", "differences to m3po", "ablation", "curve of alpha"]
    assert drawn == written
    for value in shown.values():
        (data,) = re.fullmatch(r"!\[\]\(data:image/webp;base64,(.*)\)", value.md_str).groups()
        assert Image.open(io.BytesIO(base64.b64decode(data))).width <= 960 and len(data) < 20_000


def test_the_page_does_without_what_is_not_there(board):
    bare = Board("small", board.table, board.columns, ["base"])
    shown = Tables(page(bare, [], None))
    assert shown.rows.keys() == {"headlines", "against-base", "every"} and len(shown.pictures) == 1


def test_equal_boards_are_drawn_alike_with_a_panel_a_figure(board):
    text = plots.svg(plots.curve(board, board.curves[0]))
    assert text == plots.svg(plots.curve(board, board.curves[0]))
    axes = [one for one in ElementTree.fromstring(text).iter(f"{SVG}g") if one.get("id", "").startswith("axes_")]
    assert len(axes) == len(board.shown) == 8
    nothing = plots.differences(Board("small", board.table.slice(0, 0), board.columns, ["base"]), "base")
    assert nothing is None and plots.svg(nothing) == ""
