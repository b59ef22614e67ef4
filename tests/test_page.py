"""The page says what the summary says, literally, and needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.figures import drawings
from analysis.page import page
from analysis.report import sheets_of
from analysis.sheets import Sheet, Shown
from analysis.summary import Differs, Summary, summarize
from hdsweep.store import Store
from tests.reported import HOSTILE, Arm, report_on

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Element:
    """One element with all that is in it."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    inside: list[Element | str] = field(default_factory=list)

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        found = []
        for one in self.inside:
            if isinstance(one, Element):
                same = all(one.attributes.get(name) == v for name, v in attributes.items())
                if tag in ("", one.tag) and same:
                    found.append(one)
                found += one.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Element:
        found = self.all(tag, **attributes)
        assert len(found) == 1, (tag, attributes, len(found))
        return found[0]

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.inside)


class Parsed(HTMLParser):
    """As a browser reads it, as far as these pages go; every tag that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("")
        self.path = [self.root]
        self.feed(html)
        self.close()
        assert [one.tag for one in self.path] == [""], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, dict(attrs))
        self.path[-1].inside.append(made)
        if tag not in VOID:
            self.path.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.path[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.path[-1].tag == tag
        self.path.pop()

    def handle_data(self, data: str) -> None:
        self.path[-1].inside.append(data)


def parsed(html: str) -> Element:
    return Parsed(html).root


def summarized(store: Store) -> Summary:
    return summarize(store, store.sweep())


def written(summary: Summary, store: Store | None = None) -> str:
    return page(summary, sheets_of(summary), drawings(summary, store))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, str]:
    arms = [
        Arm(name, 1 + 0.2 * n, knobs={"<i>knob</i>": name} if n else {})
        for n, name in enumerate(HOSTILE)
    ]
    arms[3] = replace(arms[3], ends={2: "<script>alert(2)</script>\n\u202egnp.exe \u200b\x1b[31m"})
    store = report_on(
        tmp_path_factory.mktemp("hostile"),
        arms,
        question="Is <script>alert(3)</script> & <b>bold</b> _better_ | \u202ereversed?",
        groups=("<u>A</u>", "B|C&D"),
        yaml="# <script>alert(4)</script>\nname: looked_at\n",
    )
    summary = summarized(store)
    return summary, written(summary, store)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    arms = [
        Arm("baseline", 0.5, params={"max_steps": 100}),
        Arm("strong", 2.0, params={"max_steps": 200}),
        Arm("broken", 1.0, params={"max_steps": 100}, ends={2: "out of memory", 3: ""}),
    ]
    expect = ("auroc >= 0.75", "auroc >= 0.999")
    return report_on(tmp_path_factory.mktemp("plain"), arms, expect=expect)


# --- names, and what could run --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOSTILE, "<i>knob</i>", "<u>A</u>", "B|C&D"])
def test_a_name_that_is_markup_somewhere_is_text_here(
    hostile: tuple[Summary, str], name: str
) -> None:
    tables = parsed(hostile[1]).all("table")
    assert any(name in table.text for table in tables)


def test_nothing_that_a_user_or_method_wrote_becomes_an_element(
    hostile: tuple[Summary, str],
) -> None:
    found = parsed(hostile[1])
    body = found.one("body")
    assert len(body.all("script")) == 1  # the page's own
    assert not body.all("i")
    assert not body.all("u")
    for text in ("alert(1)", "alert(2)", "alert(3)", "alert(4)"):
        assert text in body.text
        assert text not in body.one("script").text
    for one in found.all():
        assert not [name for name in one.attributes if name.startswith("on")]


def test_characters_that_nobody_sees_are_shown_by_their_code(hostile: tuple[Summary, str]) -> None:
    assert not re.search("[\u200b\u202e\x1b]", hostile[1])
    text = parsed(hostile[1]).one("main").text
    assert "\\u202ereversed?" in text
    assert "\\n\\u202egnp.exe \\u200b\\x1b[31m" in text


def test_the_page_refers_to_nothing_outside_of_it(hostile: tuple[Summary, str]) -> None:
    found = parsed(hostile[1])
    for one in found.all():
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            target = one.attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (one.tag, target)
    assert "url(" not in found.one("style").text
    assert "@import" not in found.one("style").text
    ids = [one.attributes["id"] for one in found.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    links = [one.attributes["href"] or "" for one in found.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_the_policy_lets_the_pages_own_script_and_style_run_and_no_other(plain: Store) -> None:
    summary = summarized(plain)
    found = parsed(written(summary))

    def digest(tag: str) -> str:
        content = found.one(tag).text.encode()
        return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"

    assert _policy(found) == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": digest("style"),
        "script-src": digest("script"),
    }
    assert not [one for one in found.all() if "style" in one.attributes]  # it would not apply
    served = parsed(page(summary, sheets_of(summary), refresh_s=5.0, version="abc"))
    assert _policy(served) == {**_policy(found), "connect-src": "'self'"}
    html = served.one("html")
    assert (html.attributes["data-refresh"], html.attributes["data-version"]) == ("5.0", "abc")


def _policy(found: Element) -> dict[str, str]:
    policy = found.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy is not None
    pairs = (rule.partition(" ") for rule in policy.split("; "))
    return {name: value for name, _, value in pairs}


def test_equal_input_gives_an_equal_page(plain: Store) -> None:
    assert written(summarized(plain), plain) == written(summarized(plain), plain)


# --- what it says ---------------------------------------------------------------------------------


def cells(table: Element) -> list[list[str]]:
    rows = table.one("tbody").all("tr")
    return [[c.text.strip() for c in row.inside if isinstance(c, Element)] for row in rows]


def test_tables_hold_what_the_sheets_say_with_their_marks_and_keys_to_sort_by(
    plain: Store,
) -> None:
    summary = summarized(plain)
    result = next(sheet for sheet in sheets_of(summary) if sheet.kind == "results")
    made = replace(result, rows=((Shown("x"), *(Shown("1.50", 1.5, best=True, mark="†"),) * 3),))
    table = parsed(page(summary, [made])).one("section", id="results").one("table")
    assert [head.text for head in table.one("thead").all("th")] == list(made.header)
    assert cells(table) == [["x", "1.50†", "1.50†", "1.50†"]]
    for cell in table.all("td"):
        assert cell.attributes["data-v"] == "1.5"
        assert cell.one("b").text == "1.50"
        assert cell.one("sup").text == "†"


@pytest.mark.parametrize(
    ("kind", "word", "tone", "sign"),
    [
        ("comparison", "better", "good", "▲"),
        ("comparison", "worse", "bad", "▼"),
        ("comparison", "equivalent", "same", "≈"),
        ("comparison", "inconclusive", "open", "?"),
        ("comparison", "not testable", "open", "–"),
        ("criteria", "met (not sure)", "good", "✓"),
        ("criteria", "not met", "bad", "✗"),
        ("criteria", "open", "open", "?"),
    ],
)
def test_a_verdict_has_its_word_and_a_sign_beside_its_colour(
    plain: Store, kind: str, word: str, tone: str, sign: str
) -> None:
    sheet = Sheet(kind, "t", ("arm", "verdict"), 1, ((Shown(word), Shown(word)),))  # type: ignore[arg-type]
    table = parsed(page(summarized(plain), [sheet])).one("table", id=f"{_anchor(kind)}-1-table")
    name, verdict = table.one("tbody").one("tr").all("th") + table.one("tbody").all("td")
    assert not name.all("span", **{"class": f"tone {tone}"})  # an arm may have any name
    assert verdict.one("span", **{"class": f"tone {tone}"}).text == sign + word
    assert verdict.one("span", **{"class": "sign"}).attributes["aria-hidden"] == "true"


def _anchor(kind: str) -> str:
    return {"comparison": "comparisons"}.get(kind, kind)


def test_each_interval_is_drawn_where_its_numbers_are(plain: Store) -> None:
    summary = summarized(plain)
    section = parsed(written(summary)).one("section", id="comparisons")
    drawn = [row.all("svg") for table in section.all("table") for row in table.all("tr")[1:]]
    rows = [row for row in summary.comparisons.rows if row.family == "aggregate"]
    assert len(drawn) == len(rows) == 4
    assert [len(one) for one in drawn] == [row.paired.ci_low is not None for row in rows]
    assert sum(len(one) for one in drawn) == 2  # broken has one seed: nothing to draw
    for found, row in zip(drawn, rows, strict=True):
        for svg in found:
            zero, span = svg.all("line")
            low, high = float(span.attributes["x1"] or ""), float(span.attributes["x2"] or "")
            mean = float(svg.one("circle").attributes["cx"] or "")
            paired = row.paired
            assert None not in (paired.ci_low, paired.difference, paired.ci_high)
            # Two decimals are written, of a scale on which the interval is at least 1 wide.
            share = (mean - low) / (high - low)
            expected = (paired.difference - paired.ci_low) / (paired.ci_high - paired.ci_low)
            assert share == pytest.approx(expected, abs=0.02)
            assert (float(zero.attributes["x1"] or "") < low) == (paired.ci_low > 0)


def test_the_mean_stands_out_among_the_groups_that_it_is_over(plain: Store) -> None:
    summary = summarized(plain)
    sheets = sheets_of(summary, ["comparison"], per_group=True)
    table = parsed(page(summary, sheets)).one("table", id="comparisons-1-table")
    groups = [row.all("td")[0].text.strip() for row in table.one("tbody").all("tr")]
    whole = [row.all("td")[0].text.strip() for row in table.all("tr", **{"class": "whole"})]
    assert groups == ["A", "B", "mean"] * 2
    assert whole == ["mean"] * 2


def test_all_that_is_missing_is_listed_with_its_reason(plain: Store) -> None:
    done = parsed(written(summarized(plain))).one("section", id="done")
    assert "7 of 9 planned trials are ok." in done.text
    legend = [re.sub(r"\s+", " ", li.text).strip() for li in done.one("ul").all("li")]
    assert legend == ["ok 7 (78 %)", "failed 1 (11 %)", "not run 1 (11 %)"]
    rows = cells(done.one("table"))
    assert [row[:3] for row in rows] == [["broken", "2", "failed"], ["broken", "3", "not run"]]
    assert "out of memory" in rows[0][3]


def test_a_difference_that_may_explain_results_is_told_before_the_verdict(plain: Store) -> None:
    summary = summarized(plain)
    assert [one.what for one in summary.differs if one.serious] == ["max_steps"]
    harmless = Differs("host", {"node1": ("baseline",), "node2": ("strong",)}, serious=False)
    found = parsed(written(replace(summary, differs=(*summary.differs, harmless))))
    header = found.one("header")
    assert "max_steps: 100 (baseline, broken); 200 (strong)" in header.one("aside").text
    assert "node2" not in header.text
    assert "node2" in found.one("section", id="differences").text
    said = found.one("section", id="verdict").text
    assert "max_steps" not in said  # once is enough
    same = parsed(written(replace(summary, differs=())))
    assert not same.all("aside")
    assert "in nothing else" in same.one("section", id="differences").text


def test_imported_results_are_marked_at_the_top(plain: Store) -> None:
    summary = replace(summarized(plain), imported=("old & <new>.csv",), differs=())
    found = parsed(written(summary))
    assert "old & <new>.csv" in found.one("header").text
    assert "Not known" in found.one("section", id="differences").text


def test_what_every_table_of_a_section_says_is_said_once(plain: Store) -> None:
    sheets: Sequence[Sheet] = [
        Sheet("costs", f"t{n}", ("arm",), 1, ((Shown("x"),),), ("of all", f"of {n}", "  more"))
        for n in range(2)
    ]
    section = parsed(page(summarized(plain), sheets)).one("section", id="costs")
    assert section.text.count("of all") == 1
    tops = [li for li in section.all("li") if li.all("ul")]
    assert [li.inside[0] for li in tops] == ["of 0", "of 1"]
    assert [li.one("li").text for li in tops] == ["more", "more"]


def test_a_sweep_of_which_nothing_ran_has_a_page_that_says_so(tmp_path: Path) -> None:
    never = {1: "", 2: "", 3: ""}
    store = report_on(tmp_path, [Arm("a", ends=never), Arm("b", ends=never)])
    done = parsed(written(summarized(store), store)).one("section", id="done")
    assert "0 of 6 planned trials are ok." in done.text
    assert [row[0] for row in cells(done.one("table"))] == ["a", "b"]


@pytest.mark.slow
def test_the_page_of_100_trials_is_below_3_megabytes(tmp_path: Path) -> None:
    arms = [Arm("baseline")] + [
        Arm("topk", 1 + 0.1 * q, knobs={"q_percent": float(q), "lr": lr}, steps=1000)
        for q in range(1, 11)
        for lr in (0.001, 0.01)
    ]
    store = report_on(
        tmp_path, arms[:20], seeds=(42, 43, 44, 123, 456), groups=("A", "B", "C", "D"),
        metrics=("auroc", "tpr@1", "tpr@5"), items=400,
    )  # fmt: skip
    html = written(summarized(store), store)
    assert len(parsed(html).all("img")) >= 4  # it is not small for lack of figures
    assert len(html.encode()) < 3_000_000
