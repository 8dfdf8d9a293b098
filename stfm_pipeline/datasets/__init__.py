"""One file, one dataset. Every module here that defines `SPEC` and `read` is a dataset; nothing else is edited."""
