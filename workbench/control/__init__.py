"""WHAT PROCESSES SAY: messages, their framing, addresses, states."""
