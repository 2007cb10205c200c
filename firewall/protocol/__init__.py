"""What both sides of a call share: tensors and failures as they travel."""
