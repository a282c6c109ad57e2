"""Signs of life of long work, where there is no terminal for a bar."""

import os
import signal

import pytest

from gebm.commands import setup
from gebm.commands.setup import interrupt_on_sigterm, progress


def test_work_without_a_terminal_is_told_of_on_lines(monkeypatch, caplog):
    with caplog.at_level("INFO", "gebm"), progress(200, "chain steps") as update:
        update(50)
        assert caplog.messages == []  # not of every step
        monkeypatch.setattr(setup, "QUIET_S", -1.0)
        update(50)
    assert caplog.messages == ["50 % of chain steps, 0 s; about 0 s to go"]


def test_sigterm_unwinds_as_an_interrupt_that_says_which_signal_it_was():
    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupt_on_sigterm()
        with pytest.raises(KeyboardInterrupt) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.args == (signal.SIGTERM,)
    finally:
        signal.signal(signal.SIGTERM, before)
