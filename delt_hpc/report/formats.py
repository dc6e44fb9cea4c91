"""Number formats of the report; a missing number is an en dash."""

from datetime import datetime

from delt_hpc.report.content import Spread

NONE = "–"


def decimal(value: float | None, places: int = 1) -> str:
    """1234.56 -> 1,234.6"""
    return NONE if value is None else f"{value:,.{places}f}"


def spread(value: Spread | None) -> str:
    """86.4 ± 0.5; a single value has no deviation"""
    return NONE if value is None else f"{value.mean:.1f} ± {decimal(value.std)}"


def signed(value: float | None) -> str:
    """+1.2; always with a sign"""
    return NONE if value is None else f"{value:+.1f}".replace("-", "−")


def count(value: float | None) -> str:
    """1,437"""
    return NONE if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """12,345; one decimal below 100"""
    return decimal(value, 0 if value is not None and value >= 100 else 1)


def duration(seconds: float | None) -> str:
    """27 ms, 4.2 s, 42 s, 3 min 12 s, 2 h 05 min"""
    if seconds is None:
        return NONE
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def mebibytes(value: float | None) -> str:
    """812 MiB, 3.2 GiB"""
    if value is None:
        return NONE
    return f"{value:.0f} MiB" if value < 1024 else f"{value / 1024:.1f} GiB"


def millions(value: float | None) -> str:
    """11.7 M, 320 k"""
    if value is None:
        return NONE
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def moment(value: str) -> str:
    """2026-03-02T10:00:00+00:00 -> 2026-03-02 10:00 UTC"""
    return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z")
