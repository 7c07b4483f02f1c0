"""What is in a layer, without a mount."""
