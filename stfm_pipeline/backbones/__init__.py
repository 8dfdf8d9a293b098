"""Torch modules that systems are built from."""
