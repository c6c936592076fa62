"""Ctrl-C in the middle of a call, models that want to exit, and processes that are forked."""

import os
import threading

import pytest
from runtime_support import ONE, PATIENCE_S

import miriam
from miriam.bell import Bell


class Interrupting:
    """A listener in which a signal comes, as it may anywhere in the thread that submits."""

    def __init__(self, where):
        self.armed = False
        setattr(self, where, self.interrupt)

    def heard(self, event, commands):
        pass

    def interrupt(self, *_):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("where", ["queued", "offered"])
def test_a_signal_while_a_request_is_given_keeps_nobody_from_the_end(where, drain):
    listener = Interrupting(where)
    with miriam.Runtime("cpu", listeners=[listener]) as rt:
        task = rt.load(lambda x: x + 1, ONE)
        assert task(ONE) == 2
        listener.armed = True
        with pytest.raises(KeyboardInterrupt):
            task(ONE)
        assert task(ONE) == 2
        listener.armed = True
        with pytest.raises(KeyboardInterrupt):
            task(ONE)
        rt.close(drain=drain)
        counts = task.statistics
    assert counts.submitted == 4
    assert counts.answered + counts.failed == 4


def test_a_model_that_raises_what_ctrl_c_does_fails_by_itself():
    def model(x):
        if x[0] > 1:
            raise KeyboardInterrupt
        return x

    with miriam.Runtime("cpu") as rt:
        task = rt.load(model, ONE)
        with pytest.raises(miriam.ModelError, match="KeyboardInterrupt"):
            task(2 * ONE)
        assert task(ONE) == 1


def test_a_bell_that_has_been_rung_is_not_waited_for():
    bell, heard = Bell(), threading.Semaphore(0)

    def wait():
        for _ in range(2):
            bell.wait()
            heard.release()

    bell.ring()
    bell.ring()  # counts once
    thread = threading.Thread(target=wait)
    thread.start()
    assert heard.acquire(timeout=PATIENCE_S)
    assert thread.is_alive()
    bell.ring()
    thread.join(PATIENCE_S)
    assert heard.acquire(blocking=False)
    for time_us in (1.0, 0.0, -1.0):
        bell.wait(time_us)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_was_forked_is_told_so():
    with miriam.Runtime("cpu") as rt:
        task = rt.load(lambda x: x + 1, ONE)
        task(ONE)
        child = os.fork()
        if not child:  # what follows must not come back to the tests
            code = 1
            try:
                task.submit(ONE)
            except miriam.ClosedError as error:
                code = 2
                if "fork" in str(error) and rt.closed:
                    rt.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert task(ONE) == 2
