"""A check of this project on one GPU, in eight minutes: see ``benchmarks.gpu_check.__main__``."""
