"""What happens to a model after it was shipped: its versions, and what the field reports."""
