"""When a server has been away for so long that it is no longer waited for."""

from time import monotonic

# A server that is restarted or fails over is back by then, and every image that is asked for meanwhile has its own
# tries. Who is away for longer would cost each of a hundred thousand images half a minute.
OUTAGE_SECONDS = 300.0
ASK_AGAIN_SECONDS = 30.0


class Outage:
    """Remembers since when nothing has come from a server; reads of several threads tell it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._asked = 0.0

    def answered(self) -> None:
        """The server has sent a file, or said that it will not."""
        self._since = None

    def failed(self) -> None:
        """All tries for a file have failed."""
        if self._since is None:
            self._since = monotonic()

    def may_ask(self) -> bool:
        """Whether to ask for a file: not in a long outage, but for one every ASK_AGAIN_SECONDS to see its end."""
        now = monotonic()
        if self._since is None or now - self._since < OUTAGE_SECONDS or now - self._asked > ASK_AGAIN_SECONDS:
            self._asked = now
            return True
        return False
