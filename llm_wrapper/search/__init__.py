"""GLOV (arXiv 2410.06154): an LLM proposes prompts, a slice of the training data tells how good they are."""
