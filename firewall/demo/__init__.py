"""The whole story on a real ImageNet classifier, for someone who has just installed this."""
