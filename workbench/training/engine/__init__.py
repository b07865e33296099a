"""LAYER-MAJOR, ONE GPU: all microbatches pass a block before the next."""
