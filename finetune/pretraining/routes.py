"""The ways into and out of pretraining: weights and vocabulary to begin with, validation, scoring, filling gaps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForPreTraining, PreTrainedTokenizerBase

from finetune import adapters, cpu, hardware, pretrained
from finetune.config import refuse_for_model
from finetune.data.columns import Split
from finetune.errors import Exit, UserError, did_you_mean
from finetune.pretrained import Source
from finetune.pretraining import corpus, examples, scoring, vocabulary
from finetune.pretraining.distillation import Teacher, check_widths
from finetune.pretraining.examples import Frame
from finetune.pretraining.masking import CONTINUATION, MaskingConfig
from finetune.pretraining.material import Material, Plan, entry_translations
from finetune.pretraining.model import Pretrainer, ShapeConfig, Start, auto_learning_rate, from_checkpoint, from_random
from finetune.pretraining.scoring import Masked, Tally
from finetune.pretraining.stores import Encoder, Rows
from finetune.pretraining.vocabulary import VocabularyConfig
from finetune.run import read_json
from finetune.trainer import TrainConfig

EPOCHS = 1
BEST = 5  # tokens told for each [MASK]
METRICS = ("loss", "perplexity", "accuracy")
LOWER = {"loss", "perplexity"}
NGRAMS = "character n-grams (2-4, TF-IDF)"


def loop_settings() -> TrainConfig:
    """Return the loop's settings for pretraining: an update of many tokens, whatever their number of examples."""
    return TrainConfig(per_device_train_batch_size=256, max_tokens_per_batch=4_096, metric_for_best_model="loss")


def resolve(config: TrainConfig, start: Start, asked: Plan) -> TrainConfig:
    """Return the settings with every `auto` replaced: one pass, a rate by width and by what is new, precision.

    Raises UserError (2) where validation has no score of the name train.metric_for_best_model.
    """
    metric = config.metric_for_best_model
    known = [name for name in METRICS if name != "perplexity" or asked.main != "distil"]
    if metric not in known:
        what = f"train.metric_for_best_model={metric}: no such score{did_you_mean(metric, known)}"
        raise UserError(Exit.USAGE, f"{what} (known: {', '.join(known)})")
    rate, epochs = config.learning_rate, config.num_train_epochs
    automatic = adapters.auto_learning_rate(auto_learning_rate(start.width, start.fresh), start.model)
    return replace(
        config,
        learning_rate=automatic if rate == "auto" else rate,
        num_train_epochs=EPOCHS if epochs == "auto" else epochs,
        mixed_precision=hardware.choose_precision(config.mixed_precision, config.use_cpu).value,
    )


def upwards(config: TrainConfig) -> bool:
    """Say whether more of the score that chooses the checkpoint is better."""
    return config.metric_for_best_model not in LOWER


def load_teacher(name: str | None, max_length: int, use_cpu: bool) -> Teacher | None:
    """Load the teacher, where there is one."""
    return None if name is None else Teacher(name, max_length, use_cpu=use_cpu)


def begin(asked: Plan, source: Source | None, words: VocabularyConfig, shape: ShapeConfig, max_length: int) -> Start:
    """Make the model before its first update, with a vocabulary that is learnt from train, or its own."""
    learns = source is None if words.train is None else words.train
    if source is None and not learns:
        raise UserError(Exit.USAGE, "vocabulary.train=false needs a model whose vocabulary is taken; give model=NAME")
    if source is not None:
        refuse_for_model(f"model={source.name}", "network", shape, {"dropout", "trained", "pooler", "save_dtype"})
        if not learns:
            refuse_for_model(f"model={source.name}", "vocabulary", words, {"train", "embeddings"})
    if source is not None and source.adapter is not None and source.adapter.adapter != "none":
        _check_adapter(shape, learns)
    own = None if source is None else pretrained.load_tokenizer(source)
    new = None
    if words.embeddings == "aligned" and (own is None or not learns):
        what = "vocabulary.embeddings=aligned is for a new vocabulary in a model's body"
        raise UserError(Exit.USAGE, f"{what}; give model=NAME and vocabulary.train=true, or leave it out")
    if not learns and asked.unread:
        what = (
            f"objective={'+'.join(asked.kinds)} does not read {asked.unread[0]}, and the vocabulary is the model's own"
        )
        raise UserError(Exit.USAGE, f"{what}; leave it out, or add to the objective what reads it")
    if learns:
        texts = corpus.texts_for_vocabulary(asked.languages, asked.data, asked.held)
        reading = corpus.reading(asked.data) + (asked.held.identity if asked.held.places else "")
        longest = shape.max_position_embeddings if source is None else max_length
        new = vocabulary.learn(texts, reading, words, asked.data.language_exponent, longest)
    if source is None or own is None:
        assert new is not None
        return from_random(shape, new, asked.seed)
    aligned = entry_translations(asked, new, own) if words.embeddings == "aligned" and new is not None else []
    return from_checkpoint(source, shape, own, new, aligned, asked.seed)


def ready(start: Start, teacher: Teacher | None, max_length: int, masking: MaskingConfig) -> None:
    """Refuse a model that cannot read max_length tokens, or whose vectors are not as wide as its teacher's.

    With masking.next_sentence, train the parts that only this task reads.
    """
    context = int(start.model.network.config.max_position_embeddings)
    if max_length > context:
        raise UserError(
            Exit.USAGE, f"max_length={max_length} is more than the {context} tokens that the model can read"
        )
    if teacher is not None:
        check_widths(teacher, start.width)
    if masking.next_sentence:
        if adapters.is_adapted(start.model):
            what = "masking.next_sentence=true trains the pooler, which is no part of an adapter"
            raise UserError(Exit.USAGE, f"{what}; leave it out, or give adapter=none")
        start.learn_next_sentence()


def _check_adapter(shape: ShapeConfig, learns: bool) -> None:
    """Refuse what trains or changes more than an adapter can hold; raises UserError (2)."""
    faults = {
        "vocabulary.train=true makes new embeddings": learns,
        "network.trained=embeddings trains those": shape.trained == "embeddings",
        "network.pooler=identity changes the pooler": shape.pooler == "identity",
    }
    for what in (fault for fault, found in faults.items() if found):
        raise UserError(Exit.USAGE, f"{what}, and an adapter cannot hold that; leave it out, or give adapter=none")


class Judge:
    """Scores a model on what was held out."""

    def __init__(self, start: Start, found: Material, asked: Plan, precision: str) -> None:
        self.start, self.found, self.asked, self.precision = start, found, asked, precision
        self.pad = int(start.tokenizer.pad_token_id)
        self.at_start: dict[str, Any] = {}

    def validate(self) -> dict[str, float]:
        """Return the scores of each kind, of the one that judges without its name, and `loss`, summed over kinds."""
        scores: dict[str, float] = {}
        for kind, masked in self.found.masked.get("validation", {}).items():
            tally = scoring.score_masked(self.start.model, masked, self.precision)[0]
            scores |= {f"{kind}_{name}": value for name, value in scoring.values(tally).items()}
        if self.found.bitexts:
            found = scoring.values(self._retrieve()[0])
            scores |= {"distil_loss": found["loss"], "distil_accuracy": found["accuracy"]}
        main = {name: scores[key] for name in METRICS if (key := f"{self.asked.main}_{name}") in scores}
        return scores | main | {"loss": sum(scores[f"{kind}_loss"] for kind in self.asked.kinds)}

    def baselines(self) -> dict[str, dict[str, Tally]]:
        """Return what cheap systems do on each split: token frequencies, or n-grams and the first weights."""
        if self.asked.main != "distil":
            splits = self._masked()
            return {
                self.found.unigram.name: {n: scoring.score_unigram(self.found.unigram, m) for n, m in splits.items()}
            }
        first, self.at_start, _ = self._retrieve()
        ngrams = scoring.tfidf_retrieval(self.found.bitexts)
        return {NGRAMS: {"validation": ngrams}, "the first weights": {"validation": first}}

    def final(self) -> tuple[dict[str, Tally], dict[str, Any], float]:
        """Return the tallies of each split, the scores of the other kinds, and the seconds of the last split."""
        tallies: dict[str, Tally] = {}
        others: dict[str, Any] = {}
        seconds = 0.0
        for name, masked in self._masked().items():
            tallies[name], seconds = scoring.score_masked(self.start.model, masked, self.precision)
        for kind, masked in self.found.masked.get("validation", {}).items():
            if kind != self.asked.main:
                tally, _ = scoring.score_masked(self.start.model, masked, self.precision)
                others[kind] = {"validation": scoring.score(tally), "languages": _by_language(tally)}
        if self.found.bitexts:
            tally, shares, took = self._retrieve()
            others["retrieval"] = {"languages": shares, "first_weights": self.at_start}
            if self.asked.main == "distil":
                tallies, seconds = {"validation": tally}, took
            else:
                others["distil"] = {"validation": scoring.score(tally), "languages": _by_language(tally)}
        return tallies, others, seconds

    def _masked(self) -> dict[str, Masked]:
        kind = self.asked.main
        return {name: kinds[kind] for name, kinds in self.found.masked.items() if kind in kinds}

    def _retrieve(self) -> tuple[Tally, dict[str, Any], float]:
        return scoring.score_retrieval(self.start.model, self.found.bitexts, self.pad, self.precision)


def _by_language(tally: Tally) -> dict[str, Any]:
    return {code: scoring.score(tally.of(code)) for code in sorted(set(tally.languages))}


def score_texts(folder: Path, data: Split, max_length: int, masking: MaskingConfig, loop: TrainConfig) -> Tally:
    """Score a trained model at hidden places of some texts, joined into blocks, in the precision of its run."""
    start = load_trained(folder)
    frame = Frame.of(start.tokenizer, max_length, masking)
    coded = Encoder(start.tokenizer).encode(data.texts())
    flat = np.fromiter((token for row in coded for token in row), dtype=np.int64)
    offsets = np.cumsum([0, *map(len, coded)])
    lines = np.array([[0, row] for row in range(len(coded))])
    name = data.files[0]
    documents = corpus.Documents(corpus.ONE_LANGUAGE, Rows(flat, offsets), lines, (name,), {})
    if not len(flat):
        raise UserError(Exit.BAD_DATA, f"{name}: no token is left of its texts")
    precision = hardware.choose_precision(loop.mixed_precision, use_cpu=False).value
    part = examples.blocks({corpus.ONE_LANGUAGE: (documents, np.arange(len(coded)))}, frame, 1.0, 1)
    return scoring.score_masked(start.model, Masked.of(part, frame, 1), precision)[0]


def fill(folder: Path, data: Split, max_length: int) -> list[dict[str, Any]]:
    """Put the most probable token into each [MASK] of some texts.

    Returns {"id", "text", "predicted", "score" (mean probability of the tokens put in), "candidates": for each [MASK]
    the five best tokens and their probabilities}. Raises UserError (65) for a text without [MASK], or one too long.
    """
    start = load_trained(folder)
    frame = Frame.of(start.tokenizer, max_length, MaskingConfig())
    texts, identities = data.texts(), data.ids()
    rows = []
    with torch.inference_mode():
        for row, tokens in enumerate(Encoder(start.tokenizer).encode(texts)):
            places = [place + 1 for place, token in enumerate(tokens) if token == frame.alphabet.mask]
            if not places or len(tokens) > max_length - 2:
                mask = start.tokenizer.mask_token
                what = f"has no {mask} to fill" if not places else f"has more than max_length={max_length} tokens"
                raise UserError(Exit.BAD_DATA, f"{data.where(row)} {what}; write {mask} for a word, in a shorter text")
            ids = torch.from_numpy(frame.around(np.array(tokens)))[None].to(start.model.network.device)
            logits = start.model.logits({"input_ids": ids, "places": torch.tensor(places, device=ids.device)}).float()
            rows.append({"id": identities[row]} | _filled(texts[row], logits.softmax(dim=1), start.tokenizer))
    return rows


def _filled(text: str, probabilities: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    best, tokens = probabilities.topk(min(BEST, probabilities.shape[1]), dim=1)
    names = [tokenizer.convert_ids_to_tokens(row) for row in tokens.tolist()]
    predicted = text
    for row in names:
        predicted = predicted.replace(str(tokenizer.mask_token), row[0].removeprefix(CONTINUATION), 1)
    candidates = [dict(zip(row, map(float, chances), strict=True)) for row, chances in zip(names, best, strict=True)]
    return {"text": text, "predicted": predicted, "score": float(best[:, 0].mean()), "candidates": candidates}


def load_trained(folder: Path) -> Start:
    """Load a pretrained model with its output layer; raises UserError (65) where it has none."""
    source = pretrained.locate(str(folder))
    made_as = pretrained.class_named(read_json(folder / "config.json"))
    if made_as not in {"BertForMaskedLM", "BertForPreTraining"}:
        what = f"{folder} is {made_as or 'no model'}, without an output layer for hidden tokens"
        raise UserError(Exit.BAD_DATA, f"{what}; fine-tune it: finetune train bert_classification model={folder}")
    tokenizer = pretrained.load_tokenizer(source)
    network = pretrained.load_model(AutoModelForPreTraining, source, tokenizer)
    cpu.prepare(network)
    network.eval().to(hardware.device_type(use_cpu=False))
    return Start(Pretrainer(network).eval(), tokenizer, source.name, source.identity, fresh=False)
