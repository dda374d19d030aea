"""A text on its way to the network: sources -> decoding -> tokenizer -> prepare -> corpus -> batches; see `corpus.open_corpus`.

Importing it brings no torch; counting and packing characters do.
"""
