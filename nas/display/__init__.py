"""What a person sees: the terminal, notebooks, numbers as text, and pictures."""
