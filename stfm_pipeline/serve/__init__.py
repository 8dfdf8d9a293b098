"""The champion behind HTTP: bodies in, forecasts out, swapped while it runs when the alias moves."""
