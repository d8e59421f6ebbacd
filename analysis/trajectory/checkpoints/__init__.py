"""Where the models of a trajectory come from: a run, or a folder of checkpoints."""
