"""What `rarefind plan` does before a training and after it, and how it shows that."""
