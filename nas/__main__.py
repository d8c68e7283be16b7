"""Runs the command line as `python -m nas`."""

from nas.cli import main

main()
