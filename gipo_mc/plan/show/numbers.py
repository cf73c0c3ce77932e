"""Numbers as a person writes them."""

from __future__ import annotations


def number(value: float) -> str:
    """Three digits, and no powers of ten: 8.31, 30.2, 1,150."""
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e+" in text else text


def size(number: float) -> str:
    """Bytes in the unit that fits: 53.2 GiB."""
    for unit, of in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= of:
            return f"{number / of:.1f} {unit}"
    return f"{number / 2**10:.1f} KiB"


def duration(seconds: float) -> str:
    """Hours, or minutes where it is less than one."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"
