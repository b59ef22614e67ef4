"""A report as one page: a file that needs no network, and says what every other format says.

Names, questions and errors come from people and methods. The template escapes all of them, and a
character that cannot be seen is shown by its code, so that none reorders or hides what a reader
reads. Should something slip through all the same, the page's own policy lets nothing run but the
script that is part of it, known by its digest, and lets nothing be loaded from anywhere.

Figures are images within the page and not part of its document: matplotlib gives the clip paths of
different figures the same ids, and an image keeps its ids, its style and its scripts to itself.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from analysis.figures.drawing import Drawing, svg
from analysis.frame import KNOB, MEAN
from analysis.render.plain import visible
from analysis.sheets import Kind, Sheet, Shown
from analysis.summary import Differs, Summary
from analysis.tables import UNDEFINED
from analysis.verdicts import Comparison
from hdsweep.planned import cell_name

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_MISSING = 200  # people stop reading; CSV and JSON list all

_PARTS: Mapping[Kind, tuple[str, str]] = {
    "criteria": ("criteria", "Success criteria"),
    "results": ("results", "Results"),
    "comparison": ("comparisons", "Against the baseline"),
    "ablation": ("ablations", "Ablations"),
    "costs": ("costs", "Costs"),
}
"""Kind of sheet -> id and title of its section, in the order of the page."""

_TONES: Mapping[str, tuple[str, str]] = {
    "better": ("good", "▲"),
    "worse": ("bad", "▼"),
    "equivalent": ("same", "≈"),
    "inconclusive": ("open", "?"),
    "not testable": ("open", "–"),
    "not met": ("bad", "✗"),
    "met": ("good", "✓"),
    "open": ("open", "?"),
}
"""Word of a verdict -> class of its colour, and a sign for who does not see colours."""

_WIDTH, _EDGE = 120.0, 6.0  # of an interval's picture, in its own units


def page(
    summary: Summary,
    sheets: Sequence[Sheet],
    drawings: Sequence[Drawing] = (),
    *,
    refresh_s: float | None = None,
    version: str = "",
) -> str:
    """Write a report as HTML.

    Args:
        summary: What it says beside its tables.
        sheets: Its tables, in the order of each section.
        drawings: Its figures.
        refresh_s: How often, in seconds, the page asks its server at ``/state`` for the version
            that is there now, and takes another one from ``/``; None for a file, which asks
            nobody.
        version: What ``/state`` calls this version.

    Returns:
        A document that needs nothing else; equal input gives equal text.
    """
    script = _inlined("page.js")
    css = _inlined("page.css")
    figures = [_figure(drawing) for drawing in drawings]
    parts = [part for part in _parts(summary, sheets, figures) if part]
    serious = [one for one in summary.differs if one.serious]
    sections = [
        ("verdict", "Verdict"),
        *((part["id"], part["title"]) for part in parts),
        ("done", "Plan against done"),
        ("differences", "Differences"),
        ("provenance", "Provenance"),
        ("reproduce", "Reproduce"),
    ]
    return _template().render(
        summary=summary,
        version=version,
        refresh_s=refresh_s,
        policy=_policy(css, script, served=refresh_s is not None),
        css=Markup(css),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        sections=sections,
        parts=parts,
        serious=[_differs(one) for one in serious],
        # What the warning says is not said again right below it.
        answer=[a for a in summary.answer if not any(one.text in a for one in serious)],
        differs=[_differs(one) for one in summary.differs],
        done=_done(summary),
        most=_MOST_MISSING,
        yaml=summary.yaml.splitlines(),
    )


@cache
def _template() -> Template:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")


@cache
def _inlined(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(css: str, script: str, *, served: bool) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

    allowed = [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest(css)}'",
        f"script-src 'sha256-{digest(script)}'",
        *(["connect-src 'self'"] if served else []),
    ]
    return "; ".join(allowed)


def _visible(value: object) -> object:
    """Of every value in the page: control characters and invisible marks as escapes."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# --- tables and figures ---------------------------------------------------------------------------


def _parts(
    summary: Summary, sheets: Sequence[Sheet], figures: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    for kind, (anchor, title) in _PARTS.items():
        of_kind = [sheet for sheet in sheets if sheet.kind == kind]
        tables = [
            _table(sheet, f"{anchor}-{place}", summary) for place, sheet in enumerate(of_kind, 1)
        ]
        lead: list[str] = []
        if kind == "comparison" and not tables and summary.comparisons.why_none:
            lead = [summary.comparisons.why_none]
        if tables or lead:
            yield _part(anchor, title, lead=lead, tables=tables, shared=_shared(tables))
    if figures:
        yield _part("figures", "Figures", figures=figures)


def _part(anchor: str, title: str, **content: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"lead": [], "tables": [], "shared": [], "figures": []}
    return {"id": anchor, "title": title, **empty, **content}


def _shared(tables: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Take from the captions what all of them say: it is said once, below the last."""
    if len(tables) < 2:
        return []
    first, *others = (table["caption"] for table in tables)
    shared = [line for line in first if not line[1] and all(line in one for one in others)]
    for table in tables:
        table["caption"] = [line for line in table["caption"] if line not in shared]
    return shared


def _table(sheet: Sheet, anchor: str, summary: Summary) -> dict[str, Any]:
    judged = sheet.kind in ("comparison", "criteria")
    header = [{"text": text, "plain": False} for text in sheet.header]
    rows = [
        [
            _cell(shown, left=place < sheet.left, judged=judged and place >= sheet.left)
            for place, shown in enumerate(row)
        ]
        for row in sheet.rows
    ]
    compared = _compared(sheet, summary)
    intervals = _intervals(compared)
    if intervals:
        header.insert(sheet.left, {"text": "", "plain": True})
        for row, interval in zip(rows, intervals, strict=True):
            empty = _cell(Shown(""), left=False, judged=False)
            row.insert(sheet.left, {**empty, "interval": interval})
    # Where groups stand beside the mean over them, the mean is what is asked for.
    families = {one.family for one in compared}
    whole = [len(families) > 1 and one.family == "aggregate" for one in compared]
    return {
        "id": anchor,
        "title": sheet.title,
        "header": header,
        "left": sheet.left,
        "rows": list(zip(rows, whole or [False] * len(rows), strict=True)),
        "caption": _caption(sheet.caption),
    }


def _cell(shown: Shown, *, left: bool, judged: bool) -> dict[str, Any]:
    tone, sign = _tone(shown.text) if judged else ("", "")
    return {
        "text": shown.text,
        "value": shown.value,
        "best": shown.best,
        "mark": shown.mark,
        "hint": shown.hint,
        "left": left,
        "tone": tone,
        "sign": sign,
        "interval": None,
    }


def _tone(text: str) -> tuple[str, str]:
    for word, tone in _TONES.items():
        if re.match(rf"{word}(\W|$)", text):
            return tone
    return "", ""


def _caption(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Lines of a caption with those that belong to them."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("  ") and found:
            found[-1][1].append(line.strip())
        else:
            found.append((line.strip(), []))
    return found


def _compared(sheet: Sheet, summary: Summary) -> list[Comparison]:
    """The comparison of each row of a sheet; none where they are not those of the summary."""
    if sheet.kind != "comparison":
        return []
    metric = sheet.metric.partition("[")[0]
    every = [row for row in summary.for_people().comparisons.rows if row.metric == metric]
    aggregate = [row for row in every if row.family == "aggregate"]
    rows = every if len(every) == len(sheet.rows) else aggregate
    same = len(rows) == len(sheet.rows) and all(
        shown[0].text == cell_name(row.arm, {}, row.number)
        for row, shown in zip(rows, sheet.rows, strict=True)
    )
    return rows if same else []


def _intervals(rows: Sequence[Comparison]) -> list[dict[str, Any] | None]:
    """A picture of each interval against zero, all at one scale."""
    if all(row.paired.ci_low is None for row in rows):
        return []
    ends = [0.0]
    for row in rows:
        if row.paired.ci_low is not None and row.paired.ci_high is not None:
            ends += [row.paired.ci_low, row.paired.ci_high]
        if row.margin is not None:
            ends += [-row.margin, row.margin]
    low, high = min(ends), max(ends)
    scale = (_WIDTH - 2 * _EDGE) / ((high - low) or 1.0)
    return [_interval(row, low, scale) for row in rows]


def _interval(row: Comparison, low: float, scale: float) -> dict[str, Any] | None:
    def place(value: float) -> float:
        return round(_EDGE + scale * (value - low), 2)

    paired = row.paired
    if paired.difference is None or paired.ci_low is None or paired.ci_high is None:
        return None
    return {
        "zero": place(0.0),
        "low": place(paired.ci_low),
        "high": place(paired.ci_high),
        "mean": place(paired.difference),
        "margin": (place(-row.margin), round(2 * scale * row.margin, 2)) if row.margin else None,
        "tone": _tone(row.verdict)[0],
    }


_SIZE = re.compile(r'<svg[^>]*?\bwidth="([\d.]+)pt"[^>]*?\bheight="([\d.]+)pt"|<svg', re.DOTALL)


def _figure(drawing: Drawing) -> dict[str, Any]:
    text = svg(drawing)
    found = _SIZE.search(text)
    width, height = found.groups() if found else (None, None)
    data = base64.b64encode(text.encode()).decode("ascii")
    return {
        "title": drawing.title,
        "caption": drawing.caption,
        # Who does not see it is told what it shows by the caption, which follows.
        "alt": f"{drawing.title}; described below",
        "src": f"data:image/svg+xml;base64,{data}",
        # In pixels of CSS, of which a point is 4 / 3; so the text does not move as images appear.
        "width": None if width is None else round(float(width) * 4 / 3),
        "height": None if height is None else round(float(height) * 4 / 3),
    }


# --- plan, done, differences ----------------------------------------------------------------------


def _done(summary: Summary) -> dict[str, Any]:
    total = sum(summary.counts.values())
    counts, x = [], 0.0
    for status, count in summary.counts.items():
        width = 1000 * count / total if total else 0.0
        counts.append(
            {
                "status": status,
                "slug": re.sub(r"[^a-z]+", "-", status.lower()),
                "count": count,
                "percent": f"{100 * count / total:.0f}" if total else "0",
                "x": round(x, 2),
                "width": round(width, 2),
            }
        )
        x += width
    ok = summary.counts.get("ok", 0)
    words = f"{ok} of {total} planned trials {'is' if ok == 1 else 'are'} ok."
    missing = _missing(summary.frame)
    return {
        "counts": [one for one in counts if one["count"]],
        "words": words,
        "missing": missing,
        "absent": total - ok,
    }


def _missing(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Trials that a table lacks, by configuration, status and reason."""
    if frame.empty:
        return []
    lacking = frame[frame["value"].isna()]
    # Of a trial that is ok, the groups alone: the mean over them lacks only because they do.
    own = (lacking["status"] != "ok") | (lacking["group"] != MEAN)
    lacking = lacking[own].drop_duplicates(["cell", "seed", "status", "reason"])
    knobs = [name for name in frame.columns if name.startswith(KNOB)]
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for row in lacking.to_dict("records"):
        named = {k.removeprefix(KNOB): row[k] for k in knobs if row[k] is not pd.NA}
        number = None if pd.isna(row["number"]) else int(row["number"])
        status = UNDEFINED if row["status"] == "ok" else str(row["status"])
        key = (cell_name(str(row["arm"]), named, number), status, str(row["reason"]))
        of_key = seeds.setdefault(key, [])
        if int(row["seed"]) not in of_key:
            of_key.append(int(row["seed"]))
    return [
        {
            "name": name,
            "status": status,
            "reason": reason,
            "seeds": ", ".join(map(str, of_key)),
        }
        for (name, status, reason), of_key in seeds.items()
    ]


def _differs(one: Differs) -> dict[str, Any]:
    return {
        "what": one.what,
        "found": [(value, ", ".join(who)) for value, who in one.values.items()],
        "serious": one.serious,
    }
