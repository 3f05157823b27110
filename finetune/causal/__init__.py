"""Decoder-only language models (GPT-2): tokenizer, documents, packing, loss, perplexity."""
