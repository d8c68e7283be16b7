"""Compilers that end or block their process, in place of Vela's. A process imports this module."""

import os
import time


def crash(data, configuration):
    os.abort()


def hang(data, configuration):
    time.sleep(1000)
