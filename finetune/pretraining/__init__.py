"""Pretraining of BERT: vocabulary, corpora on disk, masked tokens, translations, distillation from a teacher."""
