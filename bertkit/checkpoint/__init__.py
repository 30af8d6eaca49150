"""Reading and writing model folders and training checkpoints."""
