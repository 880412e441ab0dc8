"""Wire messages, one package per version."""
