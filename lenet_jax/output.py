"""Text that people see: strings of files made safe for where they are shown, and streams that never fail."""

import errno
import io
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

READER_GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a pipe whose reader ended, and to a terminal that was closed."""

MARKDOWN = {character: f"\\{character}" for character in "\\`*[]#~|"} | {"<": "&lt;", "&": "&amp;", "$": "&#36;"}
"""Characters that Markdown interprets, and what they are written as."""


def printable(text: str) -> str:
    r"""Text with escapes, such as ``\x1b``, for characters that could control a terminal or hide what is written."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def markdown(text: str) -> str:
    """Text that Markdown shows as it is; underscores within words are no markup."""
    escaped = "".join(MARKDOWN.get(character, character) for character in printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


class Unfailing(io.FileIO):
    """A file descriptor to write to, where output that can't be written is dropped."""

    def write(self, data: Any) -> int:
        """Writes bytes, and returns how many there are."""
        try:
            return super().write(data) or len(data)
        except OSError as error:
            if self.fileno() == 1 and error.errno not in READER_GONE:
                print(f"lenet-jax: stdout can't be written ({error.strerror})", file=sys.stderr)
            return len(data)


def unfailing(stream: Any) -> Any:
    """The program's stdout or stderr, such that writing never raises; other streams, as in a notebook, unchanged.

    A run of a night goes on when its terminal is closed or the program that reads its output ends. Characters that the
    encoding lacks are escaped.
    """
    if stream is None or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    raw = Unfailing(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def console(stderr: bool = False, quiet: bool = False) -> "Console":
    """A terminal or log that shows strings as they are, without markup, emoji codes or highlighting."""
    from rich.console import Console  # takes time to import, which --help doesn't need

    stream = unfailing(sys.stderr if stderr else sys.stdout)
    return Console(file=stream, stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
