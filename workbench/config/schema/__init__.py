"""CONFIG KEYS AND WHAT THEY MEAN: a file per section; documented here and nowhere else."""
