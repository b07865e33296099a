"""ONE JOB FROM START TO OUTCOME: torchrun's parent, the socket's server, the writer of events."""
