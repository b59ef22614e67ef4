"""A terminal that shows what others wrote, and does not obey it.

Records, plans and stores may be somebody else's, and rich passes on escape sequences that stand in
a text: one of them moves the cursor, writes a title, or hides what follows.
"""

from __future__ import annotations

from collections.abc import Iterable

import rich.console
from rich.segment import Segment

from hdsweep.errors import printable


class Console(rich.console.Console):
    """As rich's; control characters of what is printed are shown and not sent."""

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """Segments of something to be printed; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
