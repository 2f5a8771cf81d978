"""How the page prints numbers: rounded half up, as people round, from the decimal that the number stands for.

"%.1f" would print 28.7 for 23 of 80 (28.75 %, but 100 * 0.2875 is 28.749999999999996) and 6.2 for 1 of 16.
"""

from decimal import ROUND_HALF_UP, Decimal

MINUS = "−"


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return str(_rounded(100 * _decimal(share), "0.1"))


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed; what rounds to zero has no sign."""
    rounded = _rounded(100 * _decimal(difference), "0.1")
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded)}"


def tenths(x: float) -> str:
    """A number, such as minutes, with one decimal."""
    return str(_rounded(_decimal(x), "0.1"))


def p_value(p: float) -> str:
    """A p-value with four decimals; below 0.0001 only that."""
    return "< 0.0001" if p < 0.0001 else str(_rounded(_decimal(p), "0.0001"))


def _decimal(x: float) -> Decimal:
    return Decimal(repr(x))  # the shortest decimal that is this float: 0.2875, not 0.28749999999999998


def _rounded(x: Decimal, step: str) -> Decimal:
    return x.quantize(Decimal(step), ROUND_HALF_UP)
