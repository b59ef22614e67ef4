"""Generators of synthetic twins of the data sets."""
