"""The console of the commands, on which text is text, wherever it comes from."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.prompt import Confirm
from rich.text import Text

# Control characters but for line breaks and tabs, as JSON writes them, too.
ESCAPES = {
    code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


class PlainConsole(Console):
    """A console that shows markup, emoji codes and escape sequences as they stand there.

    Give it `str`, not `Text`; with a `style`, or in `Styled`.
    """

    def render_str(
        self, text: str, *, style: Any = "", justify: Any = None, overflow: Any = None, **_: Any
    ) -> Text:
        """Make text of a string, be it a line, a cell, a header or a title."""
        return Text(text.translate(ESCAPES), style=style, justify=justify, overflow=overflow)


def confirm(option: str, what: str, yes: bool) -> bool:
    """Tell whether something may be deleted: with `yes`, nobody is asked.

    Raises:
        RuntimeError: There is nobody to ask.
    """
    if not yes and not sys.stdin.isatty():
        raise RuntimeError(f"{option} deletes {what}: confirm it by --yes")
    return yes or Confirm.ask(f"Delete {what}?", default=False)
