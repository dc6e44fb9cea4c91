"""Networks, their weights, and the teacher of a run."""
