"""The project's own sequence-to-sequence models: attention, recurrent networks, the Transformer, and search."""
