"""The inspector in a real browser: look around, move a slider, save a recipe; nothing breaks the content policy."""

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from copy import deepcopy
from pathlib import Path

import pytest

from m3po_dagster.study import load_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(copy_of_made):
    """Where `m3po inspect` serves a copy of the run study."""
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", "inspect", "--no-open"]
    command += ["--port", "0", "--study", str(copy_of_made.study_file), "--store", copy_of_made.root]
    server = subprocess.Popen(command, cwd=ROOT, env=copy_of_made.environment(), stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[0]
        wait_until_read(address)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait_until_read(address: str) -> None:
    """The first pages say that the study is being read."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/tune?recipe=m3po") as answer:
                if b"headline" in answer.read():
                    return
        except urllib.error.HTTPError as error:
            assert error.code == 503
        time.sleep(0.2)
    raise TimeoutError(f"{address} still reads the study after 60 s")


def changed(page) -> int:
    """How many pairs the sliders' page says would change."""
    return int(page.locator("#headline strong").inner_text().replace(",", ""))


def test_browse_filter_open_move_and_save(page, address, copy_of_made):
    from playwright.sync_api import expect

    page.goto(address)
    page.get_by_role("heading", name="small").wait_for()

    page.get_by_role("link", name="Prompts", exact=True).click()
    everything = page.locator("a.row").count()
    page.get_by_label("Recipe").select_option("m3po")
    page.get_by_label("Pair", exact=True).select_option("pair")
    page.get_by_label("Order").select_option("-gap")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("reason=pair"))
    assert 1 < page.locator("a.row").count() <= everything

    page.locator("a.row").first.click()
    page.locator("article.chosen").wait_for()
    assert page.locator("article.rejected").count() == 1
    assert page.locator("article .shaded").count() > 1
    assert page.locator(".prompt img").evaluate("image => image.complete && image.naturalWidth") == 64
    first = page.url
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != first)
    page.keyboard.press("k")
    page.wait_for_url(first)
    page.keyboard.press("u")
    page.wait_for_url(re.compile(r"/prompts\?"))

    page.get_by_role("link", name="Tune", exact=True).click()
    page.locator("#headline").wait_for()
    assert changed(page) == 0
    slider = page.get_by_label("alpha, slider")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#headline strong")).not_to_have_text("0")
    assert page.get_by_role("spinbutton", name="alpha").input_value() == "0"
    assert "alpha=0&" in page.url and changed(page) == page.locator("ol.changed a.row").count()
    page.get_by_role("spinbutton", name="delta").fill("0.3")
    page.wait_for_url(re.compile(r"delta=0\.3"))

    page.get_by_label("Name").fill("bolder")
    settled = page.url
    page.get_by_role("spinbutton", name="alpha").fill("2000000")
    page.get_by_role("button", name="Add to the study file").click()
    page.wait_for_timeout(300)
    assert page.url == settled and "bolder" not in load_study(copy_of_made.study_file).recipes
    # A value that the page lets through and the server refuses is answered by a sentence in its place.
    page.get_by_role("spinbutton", name="alpha").evaluate("field => field.removeAttribute('max')")
    page.get_by_role("spinbutton", name="alpha").fill("2000001")
    expect(page.locator("#outcome [role=alert]")).to_contain_text("less than or equal to 1000000")
    assert page.url == settled and page.locator("h1").count() == 1
    page.get_by_role("spinbutton", name="alpha").fill("0")
    expect(page.locator("#headline strong")).not_to_have_text("0")
    assert [error for error in page.console_errors if "400" not in error] == []
    page.console_errors.clear()
    page.get_by_role("button", name="Add to the study file").click()
    page.get_by_text("Recipe bolder is in the study file").wait_for()
    saved = load_study(copy_of_made.study_file).recipes["bolder"]
    original = load_study(copy_of_made.study_file).recipes["m3po"]
    assert (saved.selection.alpha, saved.selection.delta) == (0.0, 0.3)
    assert saved.training == original.training and saved.seeds == original.seeds
    page.get_by_role("link", name="Overview", exact=True).click()
    page.get_by_role("rowheader", name="bolder").wait_for()

    page.get_by_role("link", name="Answers", exact=True).click()
    page.get_by_label("Benchmark").select_option("chair")
    page.get_by_label("sft").check()
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("benchmark=chair"))
    # Base, m3po and sft beside each other.
    assert page.locator("article.answered section").count() == 3 * page.locator("article.answered").count() > 0
    assert page.console_errors == []


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways(page, address, width):
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(f"{address}/prompts")
    prompt = page.locator("a.row").first.get_attribute("href")
    for path in ("/", "/prompts", prompt, "/tune?recipe=m3po&alpha=0", "/answers", "/nothing"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    # The one error is the page that is not there.
    assert len(page.console_errors) == 1 and "404" in page.console_errors[0]


def test_the_rows_of_the_changed_prompts_show_their_pictures(page, address):
    page.goto(f"{address}/tune?recipe=m3po&alpha=0")
    rows = page.locator("ol.changed a.row")
    assert rows.count() == changed(page) > 0
    for row in rows.all():
        row.scroll_into_view_if_needed()
        row.locator("img").evaluate("image => image.decode()")
        was, here = row.locator("q").all_inner_texts()
        assert was and here and was != here
    assert page.console_errors == []


def test_by_keyboard_saving_follows_the_sliders(page, address):
    page.goto(f"{address}/tune?recipe=m3po&alpha=0")
    page.get_by_role("spinbutton", name="delta").focus()
    passed = []
    for _ in range(5):
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
    assert passed[:4] == ["Re-select", "Back to the saved setting", "name", "Add to the study file"]
    assert page.evaluate("document.activeElement.matches('ol.changed a.row')")


@pytest.mark.parametrize("width", [360, 480, 1280])
def test_the_sliders_are_on_the_first_screen_beside_notices(page, address, copy_of_made, small_study, width):
    """On a narrow window the notices are folded, and unfold when they are asked for."""
    edited = deepcopy(small_study)
    edited["recipes"]["m3po"]["selection"]["alpha"] = 0.7
    copy_of_made.write(edited)
    page.set_viewport_size({"width": width, "height": 640})
    notice = page.locator("details.note", has_text="Not everything shown is up to date")
    deadline = time.monotonic() + 60
    while True:  # until the edit is read, and no line says any more that it is being read
        page.goto(f"{address}/tune?recipe=m3po")
        if notice.count() and not page.locator("p.note").count():
            break
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        page.wait_for_timeout(300)
    sentence = notice.get_by_text("Recipe m3po was edited since its results were made")
    assert sentence.is_visible() == (width > 480)
    box = page.locator("#sliders").bounding_box()
    assert box["y"] + box["height"] <= 640
    if width <= 480:
        notice.locator("summary").focus()
        page.keyboard.press("Enter")
        assert sentence.is_visible()


def test_an_injected_script_does_not_run(page, address):
    """The policy holds in a browser, not only in a header."""
    page.goto(address)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in error for error in page.console_errors)
