"""Training of classifiers: the loop for teachers and students, and the trials of the evaluation."""
