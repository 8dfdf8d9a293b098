"""Tasks: what is hidden from the model, and how its answer is scored."""
