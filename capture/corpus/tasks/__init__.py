"""Small tasks whose answers are known: modular addition, images, repeated sequences, mazes.

Each module makes the datums of one task from its settings and a seed. A datum is a row of tokens,
as in a text; ``CorpusConfig.scored`` says at how many of its last positions the loss counts.
"""
