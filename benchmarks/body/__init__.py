"""The cost of recording models that are all body: see ``benchmarks.body.__main__``.

A model whose parameters are nearly all captured shows what capture costs in the worst case. The
study's model does not: most of its step is an unembedding that is not captured.
"""
