"""What a user can mend is told in a sentence, without a traceback: the exception for it, and the system's errors."""

import errno
import threading
from collections.abc import Sequence

MAX_LISTED = 10


# A disk that is full, a place that is not there or cannot be written to, a file where a folder should be.
USER_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
}  # fmt: skip


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

    >>> counted(1, "row"), counted(1200, "row"), counted(2, "class", "classes")
    ('1 row', '1,200 rows', '2 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def tell_user_error_once(failed: threading.ExceptHookArgs) -> None:
    """For `threading.excepthook`: a full disk that a thread notices is raised in the main one too, and told there."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in USER_ERRORS):
        threading.__excepthook__(failed)
