"""THE SERVER: OpenAI-compatible chat and completions."""
