"""What the command line shows: each subject as plain data, and as what a person reads of it.

A module has a function that returns what `--json` prints, and one that shows it. Each is imported
by the command that needs it: a list of spaces does not wait for pandas.
"""
