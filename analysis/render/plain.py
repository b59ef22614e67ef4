"""What every format for people does to texts first."""

from __future__ import annotations


def visible(text: str) -> str:
    """Control characters, line ends and invisible marks as escapes, the rest as it is."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
