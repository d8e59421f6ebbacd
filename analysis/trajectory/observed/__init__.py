"""A model and a text as metrics see them, whichever library the model is of."""
