"""Wholes: one module per kind of work, each readable from top to bottom and free to copy."""

from pathlib import Path

PRESETS = Path(__file__).parent / "presets"
RECIPES: dict[str, str] = {
    "bert_classification": "Fine-tune BERT (or GPT-2) to classify texts or text pairs, beside TF-IDF, with a verdict.",
    "bert_pretraining": "Pretrain BERT: masked tokens, pairs of translations, or distillation into several languages.",
    "gpt2_generation": "Fine-tune GPT-2 to write: on plain text, or prompts with completions, beside n-grams.",
    "gpt2_pretraining": "Pretrain GPT-2 from a new tokenizer and random weights, or go on from a checkpoint.",
    "mbert_crosslingual": "Fine-tune on some languages, score all beside TF-IDF: matrix, gap to the oracle, verdicts.",
    "seq2seq": "Train a Transformer or an RNN with or without attention from scratch: translation, dialogue and more.",
    "summarization": "Summarise with BART, T5, GPT-2, BERT with GPT-2, or from scratch, beside leads and extracts.",
    "tfidf_baseline": "TF-IDF word and character n-grams with a linear model: the cheap baseline, alone.",
}
