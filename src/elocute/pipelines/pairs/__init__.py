"""Candidates → preference pairs: `options` says which, `rules` chooses, `build` runs it, `card` says what came out."""
