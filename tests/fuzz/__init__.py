"""Fuzzing: damages every file that the tool reads, and checks what the commands do with it."""
