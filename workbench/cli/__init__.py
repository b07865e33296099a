"""THE COMMANDS: the headless twin of the TUI."""
