"""Quanta: positions of a text that gradients put together, and when the loss of each group fell."""
