"""WHAT A RUN SHOULD BE: files, flags and key=value resolved into one typed config."""
