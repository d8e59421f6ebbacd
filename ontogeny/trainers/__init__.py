"""Record training that a trainer of another library runs: Hugging Face, TRL, Lightning."""
