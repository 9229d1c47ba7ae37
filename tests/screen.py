"""A terminal's screen, as far as rich writes to one: what a user would see, and what scrolls."""

import re

_CODE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)|(.)")


class Screen:
    """Takes what a program writes to a terminal.

    Attributes:
        lines: What was ever written, line by line; the last `height` of them are on the screen.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Shows text with its control codes.

        Raises:
            AssertionError: The cursor is to go above the screen, as where a live view does not fit.
        """
        for numbers, code, back, end, letter in _CODE.findall(text):
            if code == "A":
                self._row -= int(numbers or 1)
                assert self._row >= len(self.lines) - self.height, "above the screen"
            elif code == "K":
                assert numbers == "2", f"a code that is not known: {numbers}K"
                self.lines[self._row] = ""
            elif code:
                assert code in "mhl", f"a code that is not known: {numbers}{code}"
            elif back:
                self._column = 0
            elif end:
                self._next_line()
            elif letter:
                if self._column == self.width:
                    self._next_line()
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
                self._column += 1

    def _next_line(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.lines):
            self.lines.append("")

    @property
    def shown(self) -> list[str]:
        """The lines on the screen."""
        return [line.rstrip() for line in self.lines[-self.height :]]
