"""Errors that the user can fix."""

from collections.abc import Sequence


class UserError(Exception):
    """Invalid input; shown without a traceback.

    Args:
        what: what is wrong, in one sentence.
        where: the file, key or item that is wrong.
        expected: what would be right.
        remedy: what to do.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", remedy: str = "") -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        lines = [f"{where}: {what}" if where else what]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  to do:    {remedy}")
        super().__init__("\n".join(lines))


def some(items: Sequence[object], limit: int = 20) -> str:
    """The items joined by commas; those after `limit` are only counted."""
    head = ", ".join(str(item) for item in items[:limit])
    return head if len(items) <= limit else f"{head}, ... and {len(items) - limit} more"
