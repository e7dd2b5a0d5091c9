"""Text that somebody else wrote, as it can be shown: no character of it moves the cursor or changes the terminal."""

from __future__ import annotations


def visible(text: str) -> str:
    """Write what cannot be printed (control characters, ends of lines, changes of direction) as Python would."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
