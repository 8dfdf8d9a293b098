"""embedded -> enriched: side information joined as of the time it was known."""
