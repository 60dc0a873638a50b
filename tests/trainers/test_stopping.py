"""Signals become `Stopped`, at once or when the step is done, and the handlers that were there come back."""

import os
import signal

import pytest

from trainers import stopping


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_raises_where_the_program_is(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(stopping.Stopped) as caught, stopping.stoppable():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == before
    assert not stopping.asked()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_deferred_signal_is_noted_and_a_second_ctrl_c_raises(first: signal.Signals) -> None:
    with stopping.stoppable():
        with pytest.raises(stopping.Stopped) as caught, stopping.deferred():
            os.kill(os.getpid(), first)
            assert stopping.asked()
            os.kill(os.getpid(), signal.SIGTERM)  # as from a parent, of what a process group got already
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second Ctrl-C was not obeyed")
        assert caught.value.received == first
        with pytest.raises(stopping.Stopped):
            stopping.raise_if_asked()


def test_a_stop_is_noted_though_nobody_reads_the_messages_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as of a `tee` that the same Ctrl-C ended
    monkeypatch.setattr(stopping, "STDERR", writing)
    with stopping.stoppable(), stopping.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked()
    os.close(writing)


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.asked()
    finally:
        signal.signal(signal.SIGHUP, before)
