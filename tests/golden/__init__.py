"""Small recorded outputs, and the programs that record them again."""
