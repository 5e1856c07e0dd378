"""The console of all that rich prints: names in files of others must not steer a terminal."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from taugrid.words import printable


class Console(RichConsole):
    """rich's, with control characters in texts as escapes. Its own colours and movements are apart from texts."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, whose texts are printable."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
