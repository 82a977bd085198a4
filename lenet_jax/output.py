"""Text that people see: strings of files made safe for where they are shown, and streams that never fail."""

import errno
import io
import re
import sys
from typing import Any

MARKDOWN = {character: f"\\{character}" for character in "\\`*[]#~|"} | {"<": "&lt;", "&": "&amp;", "$": "&#36;"}
"""Characters that Markdown interprets, and what they are written as."""


def printable(text: str) -> str:
    r"""Text with escapes, such as ``\x1b``, for characters that could control a terminal or hide what is written."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: underscores within words are no markup."""
    shown = "".join(MARKDOWN.get(character, character) for character in printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", shown)


class Unfailing(io.FileIO):
    """A file descriptor where output that can't be written is dropped: a run must not end with who reads its output."""

    def write(self, data: Any) -> int:
        """Writes bytes; says on stderr if stdout fails, unless its reader is gone."""
        try:
            return super().write(data) or len(data)
        except OSError as error:
            if self.fileno() == 1 and error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a closed terminal
                print(f"lenet-jax: stdout can't be written ({error.strerror})", file=sys.stderr)
            return len(data)


def unfailing(stream: Any) -> Any:
    """Stdout or stderr so that writing never raises, and escapes what the encoding lacks; other streams unchanged."""
    if stream is None or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    buffer = io.BufferedWriter(Unfailing(stream.fileno(), "w", closefd=False))
    by_line = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=by_line)
