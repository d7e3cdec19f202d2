"""Judging answers. Kept empty: recogniser processes import this package and should start fast."""
