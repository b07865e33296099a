"""TEXT TO ROWS OF TOKENS: numpy until the device."""
