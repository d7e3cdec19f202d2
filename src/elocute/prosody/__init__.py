"""How something is said: the labels there are (schema) and what of it a waveform shows (measure)."""
