"""WHAT A RUN LEAVES ON DISK: the run folder, its records, its checkpoints, the job registry."""
