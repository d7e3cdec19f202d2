"""`elocute label`: rows of text → the labels that say how to speak them, by an LLM, by rule, or measured."""
