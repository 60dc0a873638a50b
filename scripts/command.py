"""Run a command's function from the shell: a user's mistake or a stop ends in one message, not in a traceback."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer

from configs.errors import USER_ERRORS, InputError, tell_user_error_once
from trainers.stopping import Stopped, stoppable

EXIT_INPUT = 2


def new_app(**settings: Any) -> typer.Typer:
    """A Typer app with the project's settings."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", **settings)


def run_command(main: Callable[..., None]) -> None:
    """What `python -m scripts.<name>` does."""
    app = new_app()
    app.command()(main)
    guarded(app)


def guarded(app: Callable[[], Any]) -> None:
    """Call the app; print an InputError, a full disk or a stop as a sentence and exit non-zero."""
    # Read when the commands import torch. Threads that spin while they wait, the default, make training over ten times
    # slower whenever another program wants one of two cores; asleep they cost less than that (configs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threading.excepthook = tell_user_error_once
    try:
        with stoppable():
            app()
    except InputError as error:
        _fail(f"error: {error}", EXIT_INPUT)
    except Stopped as stop:
        _fail("stopped; the same command goes on from the newest saved state", stop.exit_code)
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        _fail(f"error: {error.filename or 'a file'}: {error.strerror}; nothing that existed was changed", EXIT_INPUT)


def _fail(message: str, code: int) -> None:
    with suppress(OSError):  # what reads the messages may be gone: Ctrl-C ends a `tee`, too
        print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)
