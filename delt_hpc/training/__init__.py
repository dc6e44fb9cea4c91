"""Training of classifiers: the loop for teachers and students."""
