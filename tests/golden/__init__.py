"""Small recorded outputs."""
