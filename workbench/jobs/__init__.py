"""STARTING AND FOLLOWING JOBS: the user side under both front ends."""
