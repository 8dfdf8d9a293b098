"""One file, one named system. Every module here that defines `SYSTEM` is a system; nothing else is edited."""
