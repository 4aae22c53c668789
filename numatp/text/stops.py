"""Stop strings in a streamed text."""

from collections.abc import Iterable

from numatp.text.parts.marks import begun


class Stops:
    """Ends a text before the first of some strings, and holds back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str]):
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = ""  # the one that ended the text

    def push(self, piece: str) -> str:
        """The text that can be shown now."""
        text = self._held + piece
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            self._held = ""
            return text[:place]
        keep = begun(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
