"""Plain text files as parts of a data set: each file is one document."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from workbench.data.formats import Format
from workbench.data.raw_rows import RawRow, hash_files, reading


@dataclass(frozen=True)
class TextPart:
    """One plain text file.

    Attributes:
        file: the file that the config names.
        label: its name as complaints show it.
        content: holds the text: the file, or what it was unpacked to.
        first: offset of the first byte behind a byte order mark.
        num_rows: 1.
        form: a document.
    """

    file: Path
    label: str
    content: Path
    first: int

    num_rows: ClassVar[int] = 1
    form: ClassVar[Format] = "text"

    def fingerprint(self) -> str:
        """Give the sha256 of the file's content."""
        return hash_files([self.file])

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read the document, as a row that has a ``text``."""
        if start >= 1 or stop < 1:
            return
        with reading(self.content):
            content = self.content.read_bytes()[self.first :]
        try:
            yield RawRow(self.file, self.label, {"text": content.decode()})
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            problem = f"is not UTF-8: byte 0x{content[error.start]:02x} in line {line}"
            yield RawRow(self.file, self.label, None, problem, "save the file anew as UTF-8 text")

    def where(self, index: int) -> str:
        """Give the file's name."""
        return self.label
