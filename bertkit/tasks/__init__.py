"""What a trained model is used for, one decoder a task."""
