"""Compilers that end or block their process, in place of Vela's. A process imports this module."""

import os
import time

from nas.runtimes.ethos_u import vela

_calls = 0


def crash(data, configuration):
    os.abort()


def crash_at_third_file(data, configuration):
    global _calls
    _calls += 1
    if _calls == 3:
        os.abort()
    return vela._compile(data, configuration)


def hang(data, configuration):
    time.sleep(1000)
