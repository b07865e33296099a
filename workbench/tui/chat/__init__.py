"""The parts of the chat screen: models to pick, one conversation, two side by side, settings."""
