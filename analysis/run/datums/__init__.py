"""A datum as what it is: its tokens and text, and the picture of an image or a maze."""
