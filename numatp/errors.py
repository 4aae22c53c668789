"""The exceptions that numatp raises on purpose; the command line prints them as one line."""

from collections.abc import Iterable


class NumatpError(Exception):
    """Anything numatp itself refuses or cannot do."""

    exit_status = 1


class UserError(NumatpError):
    """Bad input: the message is one line and ends with the remedy."""

    exit_status = 2


class MachineError(NumatpError):
    """This machine, or this job's share of it, cannot do what was asked."""


class RankError(NumatpError):
    """Another rank ended the job or died; the message names it."""

    def __init__(self, message: str, witness: bool = False):
        """witness: rank 0 has died, and this rank is the one of the others to say so."""
        super().__init__(message)
        self.witness = witness


def listed(names: Iterable[str], shown: int = 3) -> str:
    """The first of many names, and how many there are besides, so that a line stays a line."""
    all_names = list(names)
    rest = len(all_names) - shown
    return ", ".join(all_names) if rest <= 1 else f"{', '.join(all_names[:shown])} and {rest} more"
