"""The report of a run: the rows, the front, the page a person chooses from."""
