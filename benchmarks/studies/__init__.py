"""Studies of training at laptop size, and the pages of docs/studies/ that are made from them."""
