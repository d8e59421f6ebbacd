"""The updates of one unit by its optimizer, as lifetime shifts need them."""
