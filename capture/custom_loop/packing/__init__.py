"""Documents that are packed into the rows of a batch, each of which is a datum."""
