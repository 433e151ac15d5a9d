import os
import signal
import threading

import pytest

from tf_dynidx.cli.start import stopped_once


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_others_are_ignored(first):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    saved = False
    with pytest.raises(KeyboardInterrupt), stopped_once():
        try:
            os.kill(os.getpid(), first)
            raise AssertionError("it went on")
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            saved = True
            raise
    assert saved
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_are_left_alone():
    seen = []

    def run():
        with stopped_once():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
