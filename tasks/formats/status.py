"""status.json: the course of a run in JSON lines as TAO writes them, appended to, read by TAO's dashboards.

Unlike TAO's, the last line of a run is SUCCESS or FAILURE (TAO leaves a finished run at RUNNING).
"""

from datetime import datetime
from enum import StrEnum

from tasks.formats.json_lines import dump_line


class Status(StrEnum):
    """The states that a line reports."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


def status_line(status: Status, message: str, now: datetime) -> bytes:
    """One line to append: date `M/D/YYYY` and time `H:M:S` without padding, in the time zone of `now`."""
    return dump_line(
        {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": "INFO",
            "message": message,
        }
    )
