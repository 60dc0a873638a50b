"""The one exception that means "the user can mend this": commands print it without a traceback."""

from collections.abc import Sequence

MAX_LISTED = 10


class InputError(ValueError):
    """A bad input. The message names the file, the row and the id, what was expected, what was got, what to change."""


def listed(problems: Sequence[object], *, cap: int = MAX_LISTED) -> str:
    """One indented line per problem, at most `cap` of them, and how many more there are."""
    lines = [f"  - {problem}" for problem in problems[:cap]]
    if len(problems) > cap:
        lines.append(f"  ... and {len(problems) - cap} more of {len(problems)}")
    return "\n".join(lines)


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun, and whatever else follows the number.

    >>> counted(1, "row"), counted(2, "row"), counted(2, "class", "classes")
    ('1 row', '2 rows', '2 classes')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
