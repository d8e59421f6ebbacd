"""Everything to be known of one GPU in eight minutes: see ``benchmarks.gpu_check.__main__``."""
