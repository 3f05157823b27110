"""Sequence-to-sequence models of our own: attention, recurrent and Transformer layers, search, vocabularies."""
