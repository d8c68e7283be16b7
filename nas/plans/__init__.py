"""Plans over several networks or several devices: cascades of the trained networks of a run."""
