"""THE SCREENS: a Textual program over jobs/."""
