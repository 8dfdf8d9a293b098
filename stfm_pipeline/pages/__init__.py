"""Self-contained HTML pages: how they look, how numbers read, how they are put in place."""
