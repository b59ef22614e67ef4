"""The page as people meet it: in Chromium, which is the one thing that these tests need.

On Debian and Ubuntu ``apt-get install chromium`` brings it; Playwright drives it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hdsweep.cli_watch import page_of
from tests.conftest import interruptible
from tests.reported import HOSTILE, Arm, finish, report_on

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium brings one")
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=alone)
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and all that it did which it should not."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def start(url: str, width: int = 1280, scheme: str = "light", **options: bool) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
            **options,  # type: ignore[arg-type]
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        page = opened.page
        page.on("request", lambda made: opened.requests.append(made.url))
        page.on("console", lambda said: opened.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (opened.complaints.append("dialog"), dialog.dismiss()))
        page.goto(url)
        return opened

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a sweep whose names are markup, with failures and all sorts of figures."""
    root = tmp_path_factory.mktemp("browser")
    arms = [
        Arm(name, 1 + 0.3 * ((5 * n) % 8), {"q": float(n)} if n else {}, {"max_steps": 100 + n % 2})
        for n, name in enumerate(HOSTILE)
    ]
    arms[3] = Arm("failing", 1.0, ends={2: "<script>alert(2)</script>", 3: ""})
    store = report_on(
        root,
        arms,
        question="Is <script>alert(3)</script> & _this_ | <b>bold</b>?",
        groups=("<u>A</u>", "B|C&D"),
        expect=("auroc >= 0.8",),
        yaml="# <script>alert(4)</script>\n" + "a_long_line: " + "x" * 400 + "\n",
    )
    path = root / "report <1> & 2.html"
    path.write_text(page_of(store, store.sweep(), None, ""), encoding="utf-8")
    return path.as_uri()


def column(page: Page, table: str, place: int) -> list[str]:
    """Texts of a column, from 1."""
    return page.locator(f"#{table} tbody tr > :nth-child({place})").all_inner_texts()


def test_the_file_asks_for_nothing_and_complains_of_nothing(
    file: str, open_page: Callable[..., Opened]
) -> None:
    opened = open_page(file)
    page = opened.page
    for one in page.locator("details").all():
        one.evaluate("one => { one.open = true }")
    page.locator("#bar button").click()
    images = page.locator("img")
    assert images.count() >= 3
    for n in range(images.count()):
        images.nth(n).scroll_into_view_if_needed()
        assert images.nth(n).evaluate("one => one.complete && one.naturalWidth > 0")
    page.wait_for_timeout(500)  # for what would come late
    assert [url for url in opened.requests if not url.startswith("data:")] == [file]
    assert opened.complaints == []


def test_names_that_are_markup_are_read_as_they_were_written(
    file: str, open_page: Callable[..., Opened]
) -> None:
    opened = open_page(file)
    body = opened.page.locator("body").inner_text()
    for name in (*HOSTILE[:3], *HOSTILE[4:], "<u>A</u>", "B|C&D", "<script>alert(3)</script>"):
        assert name in body
    assert opened.page.locator("main script, main img:not(.card), main u, main b b").count() == 0
    assert opened.page.title() == "looked_at · hdsweep report"
    assert opened.complaints == []  # a dialog is one


def test_a_table_is_sorted_by_a_click_down_up_and_back(
    file: str, open_page: Callable[..., Opened]
) -> None:
    page = open_page(file).page
    table = "results-1-table"
    last = len(page.locator(f"#{table} thead th").all())
    head = page.locator(f"#{table} thead th").nth(last - 1)

    def shown() -> list[float]:  # as in "79.00±1.23 (n=2/3)†"
        return [float(re.split("[± ]", text)[0]) for text in column(page, table, last)]

    values = shown()
    assert values != sorted(values)[::-1]
    head.get_by_role("button").click()
    assert (head.get_attribute("aria-sort"), shown()) == ("descending", sorted(values)[::-1])
    head.get_by_role("button").click()
    assert (head.get_attribute("aria-sort"), shown()) == ("ascending", sorted(values))
    head.get_by_role("button").click()
    assert (head.get_attribute("aria-sort"), shown()) == (None, values)


def test_a_table_is_sorted_from_the_keyboard_and_says_so(
    file: str, open_page: Callable[..., Opened]
) -> None:
    page = open_page(file).page
    table = "results-1-table"
    names = column(page, table, 1)
    button = page.locator(f"#{table} thead th").first.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    ascending = column(page, table, 1)
    assert ascending != names
    assert sorted(ascending) == sorted(names)
    page.keyboard.press("Space")
    assert column(page, table, 1) == ascending[::-1]
    assert "Sorted by arm, descending" in page.locator("[aria-live=polite]").inner_text()
    # Numbers are put in order by what they are, and what has none comes last both times.
    knob = page.locator(f"#{table} thead th").nth(1).get_by_role("button")
    knob.press("Enter")
    values = [text for text in column(page, table, 2) if text]
    assert values == sorted(values, key=float)
    knob.press("Enter")
    assert column(page, table, 2) == [*values[::-1], "", ""]


def test_the_page_is_walked_through_by_keyboard_and_shows_where_one_is(
    file: str, open_page: Callable[..., Opened]
) -> None:
    page = open_page(file).page
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("one => one === document.activeElement")
    box = skip.bounding_box()
    assert box is not None
    assert box["x"] >= 0  # it is off the page until it has the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    seen = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
              const one = document.activeElement;
              if (one === document.body) return null;
              const style = getComputedStyle(one);
              const what = one.matches(".scroll, pre") ? "region" : one.localName;
              return [what, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
            }"""
        )
        if found is None:
            break
        what, outlined = found
        assert outlined, what
        seen.add(what)
    else:
        pytest.fail("the focus never leaves the page")
    assert {"a", "button", "region", "summary"} <= seen


@pytest.mark.parametrize("width", [320, 375, 768])
def test_on_a_narrow_screen_tables_scroll_and_the_page_does_not(
    file: str, open_page: Callable[..., Opened], width: int
) -> None:
    page = open_page(file, width=width).page
    for one in page.locator("details").all():
        one.evaluate("one => { one.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("scrollTo(1000, 0)")
    assert page.evaluate("scrollX") == 0
    box = page.locator(".scroll:has(#comparisons-1-table)")
    assert box.evaluate("one => one.scrollWidth > one.clientWidth")
    first = page.locator("#comparisons-1-table tbody th").first
    before = first.bounding_box()
    box.focus()
    box.evaluate("one => { one.scrollLeft = 150 }")
    after = first.bounding_box()
    assert before is not None
    assert after is not None
    # The names of the rows stay where they are, to within a pixel of rounding.
    assert abs(before["x"] - after["x"]) <= 1


CONTRAST = """() => {
  const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = color;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const found = rgb(getComputedStyle(one).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !one.checkVisibility()) continue;
    if (one.closest("script, style, .unseen")) continue;
    const a = light(rgb(getComputedStyle(one).color)), b = light(behind(one));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, walk.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
"""Contrast of every text with what is behind it, by the formula of WCAG 2."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast_in_light_and_dark(
    file: str, open_page: Callable[..., Opened], scheme: str
) -> None:
    page = open_page(file, scheme=scheme).page
    for _ in range(2):  # as the system asks, then the other way by the button
        found = page.evaluate(CONTRAST)
        assert len(found) > 100
        assert min(found)[0] >= 4.5, min(found)  # level AA for text of any size
        page.locator("#bar button").click()
    dark = "document.documentElement.dataset.theme"
    assert page.evaluate(dark) == scheme  # twice round
    page.reload()
    assert page.evaluate(f"{dark} ?? null") is None  # nothing is kept


def test_without_scripts_everything_can_be_read(
    file: str, open_page: Callable[..., Opened]
) -> None:
    opened = open_page(file, java_script_enabled=False)
    page = opened.page
    assert page.locator("button").count() == 0  # none that would do nothing
    assert len(column(page, "results-1-table", 1)) == len(HOSTILE)
    assert page.locator("#done").inner_text().startswith("Plan against done")
    assert [url for url in opened.requests if not url.startswith("data:")] == [file]


def test_on_paper_nothing_is_cut_off(file: str, open_page: Callable[..., Opened]) -> None:
    page = open_page(file, scheme="dark").page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#bar").is_visible()
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert page.evaluate(style.format(".scroll", "overflowX")) == "visible"
    assert page.evaluate(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"


def test_a_served_page_takes_what_is_new_without_losing_the_readers_place(
    tmp_path: Path, open_page: Callable[..., Opened]
) -> None:
    arms = [Arm("baseline", 0.5), Arm("strong", 2.0, ends={3: ""}), Arm("weak", 0.1)]
    store = report_on(tmp_path, arms, items=40, metrics=("auroc",))
    server = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "watch", "--store", str(tmp_path), "--every", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        opened = open_page(url)
        page = opened.page
        page.wait_for_selector("#results-1-table", timeout=60_000)  # after "the page follows"
        assert "8 of 9 planned trials are ok" in page.locator("#done").inner_text()
        button = page.locator("#results-1-table thead th").last.get_by_role("button")
        button.click()
        before = column(page, "results-1-table", 1)
        assert before == ["strong", "baseline", "weak"]
        page.locator("#yaml").evaluate("one => { one.open = true }")
        page.evaluate("scrollTo({top: 500, behavior: 'instant'})")

        finish(store, Arm("strong", 2.0), 3, ("A", "B"), ("auroc",), 40)
        expect(page.locator("#done")).to_contain_text("9 of 9", timeout=60_000)
        assert column(page, "results-1-table", 1) == before
        last = page.locator("#results-1-table thead th").last
        assert last.get_attribute("aria-sort") == "descending"
        assert last.get_by_role("button").evaluate("one => one === document.activeElement")
        assert page.locator("#yaml").evaluate("one => one.open")
        assert page.evaluate("scrollY") == 500

        assert page.evaluate("document.documentElement.dataset.refresh ?? null") is None
        asked = len(opened.requests)
        page.wait_for_timeout(2500)  # two looks and a half, were there any more
        assert len(opened.requests) == asked
        assert {u for u in opened.requests if not u.startswith("data:")} == {url, f"{url}state"}
        assert opened.complaints == []
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert server.stdout is not None
        server.stdout.close()
