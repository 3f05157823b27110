"""Texts written after sources by models of several families: pretrained or from scratch, one contract for all."""
