"""Who may ask, what comes with every answer, and what hostile content can do: nothing."""

from html.parser import HTMLParser

import pytest
from made_study import PORT, Answer, Asked

from m3po_dagster.inspector.app import hosts
from m3po_dagster.inspector.security import CONTENT_POLICY, HEADERS
from m3po_dagster.inspector.text import visible

OWN = f"http://127.0.0.1:{PORT}"
FORM = {"origin": OWN, "content-type": "application/x-www-form-urlencoded"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</div><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "\u202eevil\u202c and \u0000 and \u001b[2J",
    "&lt;script&gt; stays as it is",
    "<!-- <style>*{display:none}</style>",
]


class Parsed(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, its texts and comments."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def harmless(page: str) -> Parsed:
    """The page, which has one script, that of the server, and no element that does anything by itself."""
    parsed = Parsed(page)
    scripts = [given for tag, given in parsed.elements if tag == "script"]
    assert scripts == [{"src": "/static/inspector.js", "defer": None}]
    assert not {"style", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.elements}
    assert parsed.comments == []
    for tag, given in parsed.elements:
        assert not [name for name in given if name.startswith("on") or name == "style"], (tag, given)
        for name in ("href", "src", "action"):
            assert given.get(name) is None or given[name].startswith(("/", "#")), (tag, given)
    return parsed


def test_what_is_called_harmless_can_be_harmful():
    script = '<script src="/static/inspector.js" defer></script>'
    harmless(script)
    for text in [*HOSTILE[:3], "<a href='javascript:alert(1)'>", "<p style='color: red'>", "<!-- x -->"]:
        with pytest.raises(AssertionError):
            harmless(script + text)


@pytest.mark.parametrize(("port", "extra"), [(80, ["127.0.0.1", "localhost"]), (3001, [])])
def test_a_browser_leaves_out_the_port_of_http(port, extra):
    assert sorted(hosts(port)) == sorted([f"127.0.0.1:{port}", f"localhost:{port}", *extra])


def token(page: str) -> str:
    return page.split('name="token" value="')[1].split('"')[0]


def form(client, **changes: str) -> dict[str, str]:
    """The save form as the page gives it, with other values."""
    page = client.get("/tune?recipe=m3po").text
    study = page.split('name="study" value="')[1].split('"')[0]
    values = {"token": token(page), "study": study, "recipe": "m3po", "alpha": "0.75", "delta": "0.2", "name": "new"}
    return values | changes


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/prompts", 200),
        ("GET", "/prompts/prompt000", 200),
        ("GET", "/prompts/prompt000/answers/0", 200),
        ("GET", "/images/prompt000", 200),
        ("GET", "/static/style.css", 200),
        ("GET", "/static/inspector.js", 200),
        ("GET", "/tune/point?recipe=m3po", 200),
        ("GET", "/answers", 200),
        ("HEAD", "/", 200),
        ("GET", "/prompts?gap_min=x", 400),
        ("GET", "/nothing", 404),
        ("GET", "/static/" + "a" * 300, 404),
        ("GET", "/static/app.py", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e%2fapp.py", 404),
        ("GET", "/tune/save?a=b", 200),
        ("POST", "/prompts", 403),
        ("PUT", "/", 405),
        ("DELETE", "/", 405),
        ("TRACE", "/", 405),
        ("OPTIONS", "/", 405),
    ],
)
def test_every_answer_has_the_headers(complete, method, address, status):
    answer = complete.request(method, address)
    assert answer.status_code == status
    for name, value in HEADERS.items():
        assert answer.headers[name] == value, name
    assert "no-store" in answer.headers["cache-control"] or "private" in answer.headers["cache-control"]


def test_an_error_in_the_program_has_the_headers_and_tells_nothing(small, monkeypatch):
    monkeypatch.setattr(type(small.watch), "catalogue", lambda self: 1 / 0)
    answer = small.get("/")
    assert answer.status_code == 500 and answer.headers["content-security-policy"] == CONTENT_POLICY
    assert "ZeroDivision" not in answer.text


def test_the_policy_allows_no_inline_code_and_the_pages_have_none(complete):
    assert "unsafe" not in CONTENT_POLICY and CONTENT_POLICY.startswith("default-src 'none'")
    for address in ("/", "/prompts", "/prompts/prompt000", "/tune?recipe=m3po&alpha=0", "/answers"):
        page = complete.get(address).text
        assert page.count("<script") == 1 and '<script src="/static/inspector.js" defer></script>' in page
        harmless(page)
        assert "http://" not in page.split("<body")[1].replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}", ""]
)
def test_other_hosts_are_refused(complete, host):
    answer = complete.get("/", headers={"host": host})
    assert answer.status_code == 421 and "easy" not in answer.text


def test_localhost_is_this_server_too(complete):
    assert complete.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1", f"https://127.0.0.1:{PORT}"]
)
def test_forms_of_other_origins_are_refused(small, origin):
    headers = {key: value for key, value in {**FORM, "origin": origin}.items() if value is not None}
    answer = small.post("/tune/save", data=form(small), headers=headers)
    assert answer.status_code == 403
    assert "new" not in small.study.path.read_text()


@pytest.mark.parametrize("wrong", ["", "x", "\u00e9"])
def test_forms_without_the_token_are_refused(small, wrong):
    answer = small.post("/tune/save", data=form(small, token=wrong), headers=FORM)
    assert answer.status_code == 403 and "load the page again" in answer.text
    assert "new" not in small.study.path.read_text()


def test_forms_that_are_no_forms_are_refused(small):
    for content, kind in ((b"{}", "application/json"), (b"a=1&a=2", FORM["content-type"])):
        answer = small.post("/tune/save", content=content, headers={"origin": OWN, "content-type": kind})
        assert answer.status_code == 400 and "not taken" in answer.text
    answer = small.post("/tune/save", content=b"a=" + b"b" * 70_000, headers=FORM)
    assert answer.status_code == 400 and "more than 65536 bytes" in answer.text


def test_saving_adds_the_recipe_and_says_what_is_next(small):
    answer = small.post("/tune/save", data=form(small), headers=FORM)
    assert answer.status_code == 200 and "m3po run --recipe new" in answer.text
    small.watch.settle()
    recipe = small.watch.catalogue().study.recipes["new"]
    assert (recipe.selection.alpha, recipe.selection.delta) == (0.75, 0.2)
    again = small.post("/tune/save", data=form(small), headers=FORM)
    assert again.status_code == 409 and "has a recipe &#39;new&#39; already" in again.text


@pytest.mark.parametrize("name", ["", "a b", "../x", "<script>", "base\nrecipes: {}", "a" * 81])
def test_a_name_that_is_none_is_refused(small, name):
    before = small.study.path.read_bytes()
    answer = small.post("/tune/save", data=form(small, name=name), headers=FORM)
    assert answer.status_code == 409 and "not added" in answer.text and "<script>" not in answer.text
    assert small.study.path.read_bytes() == before


def test_a_study_changed_since_the_page_was_loaded_is_not_overwritten(small):
    values = form(small)
    small.study.path.write_text(small.study.path.read_text() + "# edited by hand\n")
    answer = small.post("/tune/save", data=values, headers=FORM)
    assert answer.status_code == 409 and "was changed since it was shown: open Tune again" in answer.text
    assert small.get("/tune/save", follow_redirects=False).headers["location"] == "/tune"
    assert small.study.path.read_text().endswith("# edited by hand\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": ""}, "Not saved: alpha is empty"),
        ({"delta": " "}, "Not saved: delta is empty"),
        ({"alpha": "-3"}, "Not saved: alpha: Input should be greater than or equal to 0"),
        ({"delta": "x"}, "Not saved: delta: &#39;x&#39; is no number"),
    ],
)
def test_a_point_that_is_none_is_not_saved_and_the_name_is_kept(small, changes, words):
    before = small.study.path.read_bytes()
    answer = small.post("/tune/save", data=form(small, **changes), headers=FORM)
    assert answer.status_code == 400 and words in answer.text
    assert 'name="name" value="new"' in answer.text and 'id="sliders"' in answer.text
    assert small.study.path.read_bytes() == before


def test_only_a_recipe_of_the_file_is_said_to_be_saved(small):
    assert "is in the study file" not in small.get("/tune?saved=ghost").text
    assert "Recipe plain is in the study file" in small.get("/tune?saved=plain").text


def test_a_refused_move_is_a_paragraph(small):
    answer = small.get("/tune/point?recipe=m3po&alpha=2000000")
    assert answer.status_code == 400 and answer.text.startswith('<p class="note bad"') and "<html" not in answer.text
    assert small.get("/tune?recipe=m3po").text.count('max="1000000"') == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_and_do_nothing(made_study, client, text):
    name = "<b>markup<b>.png"
    (made_study.images / name).write_bytes((made_study.images / "red.png").read_bytes())
    answers = [Answer(text, 0.9, words=text), Answer(f"another {text}", 0.1)]
    made_study.add_shard("s0", [Asked("p", text, answers, image=name)])
    question = {"question_id": text, "image_uri": name, "question": text, "expected": text}
    made_study.add_answers("base", {0: [text]}, [question])
    made_study.add_answers("m3po", {0: [f"{text}!"]}, [question])
    client.watch.settle()
    for address in (
        "/prompts",
        "/prompts?q=%3Cscript%3E",
        "/prompts/p",
        "/tune?recipe=m3po&alpha=3",
        "/answers?show=differs",
    ):
        page = client.get(address).text
        parsed = harmless(page)
        assert "b" not in {tag for tag, _ in parsed.elements}
        if not address.endswith("%3E") and "alpha=3" not in address:  # lists that this text need not be in
            # What markup and the page's own templates would have made of it stands there letter by letter.
            assert visible(text) in "".join(parsed.texts)
        assert "\0" not in page and "\u202e" not in page and "\x1b" not in page
    plain = client.get("/prompts/p/answers/0")
    assert plain.text == text and plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/images/p").headers["content-type"] == "image/png"
    image = client.get("/benchmark-images/pope/%3Cb%3Emarkup%3Cb%3E.png")
    assert image.status_code == 200 and image.headers["content-type"] == "image/png"


def test_a_megabyte_of_answer_is_cut_and_there_in_full(made_study, client):
    huge = "<i>long</i> " * 87_382
    made_study.add_shard("s0", [Asked("p", huge, [Answer(huge, 0.9), Answer("short", 0.1)])])
    client.watch.settle()
    page = client.get("/prompts/p")
    assert len(page.content) < 60_000 and "more characters" in page.text
    assert client.get("/prompts/p/answers/0").text == huge
    assert len(client.get("/prompts").content) < 20_000
