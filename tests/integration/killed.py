"""Work in a child process that may be killed in the middle."""

import os
import signal
import time
from collections.abc import Callable


def attempt(work: Callable[[], None], kill_after: float | None) -> int:
    """One attempt in a forked child; its exit code, or minus the signal that ended it. None: it is left alone."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
