"""ONE torchrun RANK: read the run folder, build, train, report the end."""
