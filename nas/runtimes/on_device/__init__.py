"""Files of runtimes with a Python package, loaded and timed on another device."""
