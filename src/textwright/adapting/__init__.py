"""A model in, a model out: what is done to a trained model from outside. The model's own file does not know of it."""
