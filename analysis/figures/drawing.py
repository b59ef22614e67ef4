"""A figure with its words, and the same bytes for it whenever and wherever it is written.

Nothing here depends on a user's ``matplotlibrc``, on the time or on the order of a hash. Names come
from users: no ``$`` in them starts a formula, and no ``<`` an element.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from hdsweep.files import cannot_write

Kind = Literal[
    "ablation", "draws", "heatmap", "curves", "roc", "scores", "pareto", "parallel", "ranks"
]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure of a report.

    Args:
        name: For files and links: lower-case letters, digits and dashes, unlike all others.
        title: One line.
        caption: What it shows, in words: of how many seeds, and what bands and marks mean.
        kind: What sort of figure it is.
        figure: On white, for paper and for a page of any colour.
    """

    name: str
    title: str
    caption: str
    kind: Kind
    figure: Figure


_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.unicode_minus": False,
    "figure.facecolor": "white",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so a layout is the same anywhere
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "path.simplify_threshold": 0.3,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # text stays text: small, and can be searched and copied
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def settings(**more: Any) -> Iterator[None]:
    """Draw with the settings of this package, whatever the user's are."""
    plain: dict[Any, Any] = {
        key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"
    }
    chosen: dict[Any, Any] = more
    with mpl.rc_context(plain | _RC | chosen), warnings.catch_warnings():
        # A browser has the letters that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def svg(drawing: Drawing) -> str:
    """The figure as an element that a page may hold, or a file of its own.

    Its ids start with nothing that another drawing of the report uses, and nothing in it is fetched
    from elsewhere.
    """
    sink = io.StringIO()
    with settings(**{"svg.hashsalt": drawing.name}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawing.figure.savefig(sink, format="svg", metadata=nothing)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text)  # matplotlib's copies of texts
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r'( id="([^"]*)")', lambda found: found[1] if found[2] in used else "", text
    )  # the others repeat in every figure, and a page must not
    text = _PATH.sub(lambda found: _DIGITS.sub(r"\1", found[0]).replace(" \n", " "), text)
    label = html.escape(drawing.title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


_PATH = re.compile(r'\b(?:d|x|y)="[^"]*"')
_DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is nothing to see


def pdf(drawing: Drawing) -> bytes:
    """The figure as a document of one page, fonts embedded, as publishers want it."""
    sink = io.BytesIO()
    with settings():
        nothing = {"CreationDate": None, "Creator": None, "Producer": None}
        drawing.figure.savefig(sink, format="pdf", metadata=nothing)
    return sink.getvalue()


def write(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write each as ``<name>.svg`` and ``<name>.pdf``.

    Returns:
        What was written, in order.

    Raises:
        StoreError: The folder cannot be made, or a file not written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            for ending, content in (("svg", svg(drawing).encode()), ("pdf", pdf(drawing))):
                path = folder / f"{drawing.name}.{ending}"
                path.write_bytes(content)
                written.append(path)
    except OSError as error:
        raise cannot_write(folder, error) from None
    return written
