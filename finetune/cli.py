"""The command line: what each command takes and prints. Nothing heavy is imported before a command runs."""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from finetune import __version__
from finetune.errors import Exit, Interrupted, UserError, did_you_mean

HELP = """Fine-tune a text model beside the cheap baseline, and learn with an interval whether it was worth it.

\b
finetune demo                                   a first run on shipped data; also: finetune demo generation
finetune recipes show bert_classification       every setting of a recipe
finetune train bert_classification data.train=train.csv data.test=test.csv output_dir=runs/x
finetune generate runs/g --prompt "..."         go on from a text with a language model
"""
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
recipes_app = typer.Typer(help="List, show or copy recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. data.train=F")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="preset or YAML file, read before KEY=VALUE")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in output_dir")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in output_dir")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="processes on this machine, e.g. its GPUs")]
Restarts = Annotated[int, typer.Option("--max-restarts", min=0, help="start anew so often after a process was lost")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="measure three updates, print cost, write nothing")]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="column of the text in the file")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="column of the label in the file")]
PairColumn = Annotated[str | None, typer.Option("--text-pair-column", help="column of the second text in the file")]
IdColumn = Annotated[str | None, typer.Option("--id-column", help="column of the row's id in the file")]
SourceColumn = Annotated[str | None, typer.Option("--source-column", help="column of the source in the file")]
TargetColumn = Annotated[str | None, typer.Option("--target-column", help="column of the target in the file")]
Encoding = Annotated[str | None, typer.Option("--encoding", help="encoding of the file, if not that of train")]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="column separator of the file")]
PROMPTS = "file of prompts, in place of --prompt: a row each, of .txt what stands between blank lines"
STOP = "end before this text; \\n is a line end, \\t a tab, \\\\ a backslash; may come often"
Page = Annotated[str | None, typer.Option("--report", help="also write a page about it: an HTML file")]
OnEmpty = Annotated[str | None, typer.Option("--on-empty", help="error or skip: rows without text or gold")]


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="a name from: finetune recipes list")] = None,
    settings: Settings = None,
    config: ConfigFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    processes: Processes = None,
    max_restarts: Restarts = 0,
    as_json: Json = False,
) -> None:
    """Fine-tune a model beside its baseline and print the verdict.

    \b
    finetune train bert_classification data.train=train.csv data.test=test.csv model=minilm output_dir=runs/x
    finetune train bert_classification --processes 2 data.train=train.csv output_dir=runs/x
    """
    _quiet_environment()
    from finetune import launch

    if launch.is_wanted(processes, max_restarts):
        raise typer.Exit(launch.launch(processes or 1, max_restarts, sys.argv[1:]))
    from finetune.commands import training
    from finetune.processes import is_main, join, leave

    join()
    overrides = list(settings or [])
    if recipe is not None and "=" in recipe:  # no recipe given: it comes from --config
        overrides, recipe = [recipe, *overrides], None
    restarts = max_restarts > 0 or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    options = training.TrainOptions(resume=resume, overwrite=overwrite, dry_run=dry_run, restarts=restarts)
    results = training.train(recipe, overrides, config, options)
    if is_main():
        _print_results(results, as_json)
    leave()


@app.command()
def baseline(
    settings: Settings = None,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the TF-IDF baseline alone.

    \b
    finetune baseline data.train=train.csv data.test=test.csv output_dir=runs/b
    """
    _quiet_environment()
    from finetune.commands import training

    options = training.TrainOptions(overwrite=overwrite)
    _print_results(training.train("tfidf_baseline", list(settings or []), config, options), as_json)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="folder of a run, or of a model")],
    data: Annotated[
        str, typer.Option("--data", help="labelled file new to the run; of texts also 'x/{language}.jsonl'")
    ],
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    text_pair_column: PairColumn = None,
    source_column: SourceColumn = None,
    target_column: TargetColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    on_empty: OnEmpty = None,
    drop_leaked: Annotated[bool, typer.Option("--drop-leaked", help="leave out texts that stand in train")] = False,
    as_json: Json = False,
) -> None:
    """Score a trained run on another labelled file.

    \b
    finetune evaluate runs/x --data other.csv --json
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import scoring
    from finetune.report.text import spoken_lines

    reading = _reading(
        text_column=text_column, label_column=label_column, text_pair_column=text_pair_column,
        source_column=source_column, target_column=target_column, id_column=id_column, encoding=encoding,
        delimiter=delimiter, on_empty=on_empty,
    )  # fmt: skip
    found = scoring.evaluate(run, data, drop_leaked=drop_leaked, reading=reading)
    if as_json:
        return _print_json(found["scores"])
    left_out = f", {found['left_out']} left out (in train)" if drop_leaked else ""
    left_out += f", {found['skipped']} without text or label left out" if found["skipped"] else ""
    _print(f"{terminal.count(found['rows'], 'row')}{left_out}; in brackets the 95 % interval")
    for name, value in found["scores"].items():
        _print(f"{name:<12} {terminal.shown(name, value)}")
    for text in spoken_lines(found["languages"], {}):
        _print(text)
    return None


@app.command()
def crosslingual(
    run: Annotated[str, typer.Argument(help="folder of a run that labels texts, or of its model")],
    data: Annotated[str, typer.Option("--data", help="labelled files, as a pattern: 'x/{language}.test.csv'")],
    languages: Annotated[str | None, typer.Option("--languages", help="e.g. pt,hi; default: all with a file")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    text_pair_column: PairColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    report: Page = None,
    as_json: Json = False,
) -> None:
    """Score a trained run in languages that it was not trained on, without training, beside TF-IDF.

    \b
    finetune crosslingual runs/x --data 'y/{language}.test.csv' --languages pt,hi
    """
    _quiet_environment()
    from finetune.commands import scoring
    from finetune.report.matrix import elsewhere_lines

    reading = _reading(
        text_column=text_column, label_column=label_column, text_pair_column=text_pair_column, id_column=id_column,
        encoding=encoding, delimiter=delimiter,
    )  # fmt: skip
    codes = None if languages is None else [code.strip() for code in languages.split(",") if code.strip()]
    _check_page(report)
    found = scoring.crosslingual(run, data, codes, reading=reading, report=report)
    if as_json:
        return _print_json({name: found[name] for name in ("languages", "comparisons")})
    for text in elsewhere_lines(found):
        _print(text)
    return None


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="folder of a run, or of a model")],
    input: Annotated[str | None, typer.Option("--input", help="file of texts; without it, lines of stdin")] = None,
    output: Annotated[str | None, typer.Option("--output", help="JSONL file to write; without it, stdout")] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    source_column: SourceColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    beam_size: Annotated[int | None, typer.Option("--beam-size", help="of a run that writes texts; 1: greedy")] = None,
    n_best: Annotated[int | None, typer.Option("--n-best", help="texts written for each source")] = None,
    as_json: Json = False,
) -> None:
    """Label texts, or write a text for each source: one row each, in order.

    \b
    echo "my card was swallowed" | finetune predict runs/x
    finetune predict runs/x --input new.csv --output out.jsonl
    finetune predict runs/translation --input new.jsonl --beam-size 5 --output out.jsonl
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import scoring
    from finetune.run import write_atomic

    if input is None and sys.stdin.isatty():
        raise UserError(Exit.USAGE, "give texts: --input FILE, or lines on standard input")
    if output is not None:
        _check_output(output)
    reading = _reading(
        text_column=text_column, text_pair_column=text_pair_column, source_column=source_column,
        id_column=id_column, encoding=encoding, delimiter=delimiter,
    )  # fmt: skip
    given = input if input is not None else iter(sys.stdin)
    rows = scoring.predict(run, given, reading=reading, beams=beam_size, texts=n_best)
    if output is not None:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        write_atomic(Path(output), "".join(lines).encode())
        terminal.say(terminal.line("written", f"{output} · {terminal.count(len(rows), 'row')}"))
    elif as_json:
        _print_json(rows)
    else:
        for row in rows:
            _print(_prediction_line(row))


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="folder of a run that writes, of its model, or mini-gpt2")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="text to go on from; may come often")] = None,
    input: Annotated[str | None, typer.Option("--input", help=PROMPTS)] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="longest text")] = None,
    min_new_tokens: Annotated[int | None, typer.Option("--min-new-tokens", help="shortest text")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: the most probable token")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="draw among so many tokens; 0: all")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="draw among the tokens with this probability")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="least share of the best token's probability")] = None,
    typical_p: Annotated[float | None, typer.Option("--typical-p", help="draw among typical tokens")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="above 1: a token of prompt or text costs more")
    ] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option("--no-repeat-ngram-size", help="0: may repeat")] = None,
    num_beams: Annotated[int | None, typer.Option("--num-beams", help="search with so many beams")] = None,
    length_penalty: Annotated[
        float | None, typer.Option("--length-penalty", help="of a search; 0: short texts")
    ] = None,
    num_return_sequences: Annotated[int | None, typer.Option("--num-return-sequences", help="texts a prompt")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help=STOP)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="of what is drawn")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, or bfloat16, faster where native")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="print the text as it is written")] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="also tell how varied the texts are and what they copy from train")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on from a prompt with a language model; an empty one begins a new text.

    \b
    finetune generate runs/g --prompt "Once upon a time" --max-new-tokens 80 --temperature 0.8 --top-p 0.95
    finetune generate runs/g --prompt "" --num-return-sequences 20 --seed 1 --quality --json
    finetune generate runs/g --input prompts.txt --temperature 0
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import generating
    from finetune.config import unescaped

    prompts = input if prompt is None else prompt
    if prompts is None or (prompt is not None and input is not None):
        raise UserError(Exit.USAGE, 'give prompts: --prompt "..." (may be empty), or --input FILE')
    if stream and as_json:
        raise UserError(Exit.USAGE, "--stream prints the text itself; leave out --json")
    given = {
        "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size, "num_beams": num_beams, "length_penalty": length_penalty,
        "num_return_sequences": num_return_sequences, "dtype": dtype,
    }  # fmt: skip
    reading = [f"generation.{name}={value}" for name, value in given.items() if value is not None]
    if stop:
        ends = [unescaped(text) for text in stop]
        reading.append(f"generation.stop_strings={json.dumps(ends, ensure_ascii=False)}")
    reading += [] if seed is None else [f"seed={seed}"]
    found = generating.generate(run, prompts, reading, _print_piece if stream else None)
    texts = [text for row in found for text in row["texts"]]
    if as_json:
        rows = found[0] if len(found) == 1 and prompt is not None else found
        return _print_json({"generated": found, "quality": generating.quality(run, texts)} if quality else rows)
    if stream:
        _print("")
    else:
        _print_generated(found)
    if quality:
        from finetune.report.writing import figures_lines

        for number, text in enumerate(figures_lines(generating.quality(run, texts)["figures"])):
            _print(terminal.line("" if number else "quality", text))
    return None


def _print_generated(found: list[dict[str, Any]]) -> None:
    for row in found:
        for text in row["texts"]:
            _print(row["prompt"] + row["between"] + text)
            if len(found) * len(row["texts"]) > 1:
                _print("-" * 10)


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="folder of a run, or of a model; with --attention or --word also a name")],
    text: Annotated[list[str] | None, typer.Option("--text", help="a text; may come often")] = None,
    text_pair: Annotated[list[str] | None, typer.Option("--text-pair", help="second text of each --text")] = None,
    input: Annotated[str | None, typer.Option("--input", help="file of texts to label, in place of --text")] = None,
    target: Annotated[str | None, typer.Option("--target", help="what a seq2seq run is taken to have written")] = None,
    label: Annotated[str | None, typer.Option("--label", help="explain this label; default the predicted one")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="of integrated gradients; default 64")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="where each head of each layer looks")] = False,
    word: Annotated[str | None, typer.Option("--word", help="compare this word's vectors over contexts")] = None,
    contexts: Annotated[str | None, typer.Option("--contexts", help="file of contexts of --word, one a line")] = None,
    layer: Annotated[int | None, typer.Option("--layer", min=0, help="of --word; default two thirds up")] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    id_column: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    output: Annotated[
        str | None, typer.Option("--output", help="picture to write, .svg or .png; of labelled texts also .html")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which words speak for the label of a text; where a writer, or any attention head, looks; a word in contexts.

    \b
    finetune explain runs/x --text "my card was swallowed" --output why.html
    finetune explain runs/translation --text "A man sleeps." --target "Ein Mann schläft." --output map.svg
    finetune explain runs/x --attention --text "my card was swallowed"
    finetune explain minilm --word bank --contexts contexts.txt
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import explaining

    texts, pairs = list(text or []), list(text_pair or [])
    reading = _reading(
        text_column=text_column, text_pair_column=text_pair_column, id_column=id_column, encoding=encoding,
        delimiter=delimiter,
    )  # fmt: skip
    shows_labels = not attention and word is None
    _check_picture(output, page=shows_labels)
    of_labels = [pairs, input, target, label, steps, reading]
    if (attention and word is not None) or (not shows_labels and any(of_labels)):
        raise UserError(Exit.USAGE, "--attention and --word stand alone, with --text and --output")
    if word is None and (contexts is not None or layer is not None):
        raise UserError(Exit.USAGE, "--contexts and --layer are of --word; give --word WORD")
    if not texts and input is None and contexts is None:
        raise UserError(Exit.USAGE, "missing option '--text'; finetune explain --help")
    if texts and (input or contexts):
        raise UserError(Exit.USAGE, "give texts by --text or in a file, not both")
    if reading and input is None:
        raise UserError(Exit.USAGE, "columns, encoding and delimiter are of --input FILE, which is missing")
    if attention:
        if len(texts) != 1:
            raise UserError(Exit.USAGE, "--attention is of one --text")
        shown = explaining.show_attention(run, texts[0], output)
    elif word is not None:
        shown = explaining.show_word(run, word, contexts or texts, layer=layer, output=output)
    else:
        shown = explaining.explain(run, explaining.Asked(texts, pairs, input, reading, target, label, steps), output)
    if as_json:
        return _print_json(shown.json)
    for part in shown.lines(terminal.is_coloured()):
        _print(part)
    return None


@app.command()
def playground(
    run: Annotated[str, typer.Argument(help="folder of a run, or of a model, or mini-gpt2")],
    host: Annotated[str, typer.Option("--host", help="address to serve; another one lets others in")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="default: 7860, or the next that is free; 0: any")
    ] = None,
    browse: Annotated[bool, typer.Option("--open", help="show the page in the browser of this machine")] = False,
    as_json: Json = False,
) -> None:
    """Try a run in the browser, on a page for this machine alone, until Ctrl-C.

    \b
    finetune playground runs/x
    finetune playground mini-gpt2 --port 8000 --open
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import serving

    served = serving.playground(run, host, port)
    _print_json({"url": served.url}) if as_json else _print(terminal.line("page", f"{served.url} · Ctrl-C ends it"))
    sys.stdout.flush()
    if not served.is_private:
        terminal.say(terminal.line("warning", f"--host {host}: everybody who can reach this machine can use the page"))
    if browse:
        import webbrowser

        webbrowser.open(served.url)
    served.run()


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="folder of a run, or of a model")],
    output: Annotated[str | None, typer.Option("--output", help="folder to write; with --checkpoint, file")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="a plain model of base and adapter, compared on test")] = False,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="weights alone, of an update or `last`, of a run that may go on")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="file to compare on, in place of the test rows")] = None,
    push: Annotated[str | None, typer.Option("--push", help="OWNER/NAME on the Hub to upload to")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="who sees it on the Hub; default for a new one: private")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's model and card into a folder of its own, or upload them; --merge makes an adapter part of its base.

    \b
    finetune export runs/x --output models/x
    finetune export runs/lora --merge --output models/merged
    finetune export runs/x --push OWNER/NAME --public
    finetune export runs/stopped --checkpoint last --output model.safetensors
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import exporting

    if checkpoint is not None:
        if output is None or merge or any(given is not None for given in (data, push, private)):
            what = "--checkpoint writes weights as they are, to --output FILE"
            raise UserError(Exit.USAGE, f"{what}; give that, and leave out --merge, --data, --push and who may see it")
        weights = exporting.export_weights(run, output, checkpoint)
        if as_json:
            return _print_json(weights)
        return _print(f"written   {output} · update {weights['step']:,} · {terminal.size(weights['bytes'])}")
    options = exporting.ExportOptions(output=output, merge=merge, data=data, push=push, private=private)
    found = exporting.export_model(run, options)
    if as_json:
        return _print_json(found)
    if merge:
        _print(
            f"merged    {terminal.count(found['rows'], 'text')} compared in fp32: the largest difference between two "
            f"probabilities is {found['largest_difference']:.1e} (at most {found['tolerance']:g} is accepted)"
        )
    if output is not None:
        _print(f"written   {output} · {terminal.size(found['bytes'])}")
    if push is not None:
        seen = "private: --public of a new one, or its settings, let others see it" if found["private"] else "public"
        _print(f"pushed    {found['address']} · {seen}")
    return None


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="folder of a finished run, or of one of its seeds")],
    output: Annotated[str | None, typer.Option("--output", help="HTML file to write; default RUN/report.html")] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a finished run anew, from the files of the run alone.

    \b
    finetune report runs/x --output x.html
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import comparing

    _check_page(output, "--output")
    path = comparing.report(run, output=output)
    if as_json:
        return _print_json({"report": str(path)})
    return _print(terminal.line("report", str(path)))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="two runs or more, scored on the same test rows")],
    report: Page = None,
    as_json: Json = False,
) -> None:
    """Compare runs on the same rows: difference, 95 % interval, p, verdict, and where they disagree.

    \b
    finetune compare runs/x runs/b --report comparison.html
    """
    _quiet_environment()
    from finetune.commands import comparing
    from finetune.report.text import comparison_lines

    _check_page(report)
    found = comparing.compare(runs, report=report)
    if as_json:
        return _print_json(found)
    for comparison in found:
        for text in comparison_lines(comparison):
            _print(text)
    return None


@app.command()
def check(
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 65 for warnings too")] = False,
    as_json: Json = False,
) -> None:
    """Examine data before training: duplicates, leaks, labels, lengths, and what the test set can show.

    \b
    finetune check data.train=train.csv data.test=test.csv model=minilm
    """
    _quiet_environment()
    import dataclasses

    from finetune import terminal
    from finetune.commands import checking

    findings = checking.check(list(settings or []))
    if as_json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print(terminal.line(finding.level, finding.message + (f"\n→ {finding.action}" if finding.action else "")))
    levels = {finding.level for finding in findings}
    if "failure" in levels or (strict and "warning" in levels):
        raise typer.Exit(Exit.BAD_DATA)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Describe this machine as the trainer sees it.

    \b
    finetune doctor
    """
    _quiet_environment()
    from finetune import terminal
    from finetune.commands import machine

    found = machine.doctor()
    if as_json:
        return _print_json(found)
    versions = " · ".join(f"{name} {version}" for name, version in found["versions"].items())
    precision = found["mixed_precision"]
    _print(terminal.line("versions", versions))
    _print(terminal.line("device", f"{found['device']} · {found['platform']}"))
    _print(terminal.line("precision", f"mixed_precision=auto is {precision['auto']} ({precision['reason']})"))
    memory, disk = terminal.size(found["memory_bytes"]), terminal.size(found["disk_free_bytes"])
    _print(terminal.line("space", f"{memory} memory · {disk} free disk · load {found['load_average']:.1f}"))
    _print(terminal.line("hub", found["hub"]))
    for name, there in found["extras"].items():
        _print(terminal.line(name, "installed" if there else f"missing: pip install 'finetune-recipes[{name}]'"))
    for text in found["advice"]:
        _print(terminal.line("advice", text))
    return None


@app.command()
def demo(
    what: Annotated[
        str, typer.Argument(help="languages, summarization or generation; or the folder of languages")
    ] = "languages",
    output_dir: Annotated[str | None, typer.Argument(help="run folder to write; default runs/demo...")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train on shipped data, offline, in minutes: labels in five languages, summaries of dialogues, or stories.

    \b
    finetune demo                        a small multilingual BERT learns English labels and labels five languages
    finetune demo summarization          a Transformer learns to summarise dialogues, beside their first lines
    finetune demo generation             mini-gpt2 goes on with stories, beside n-grams
    """
    _quiet_environment()
    from finetune.commands import training

    kind, folder = (what, output_dir) if what in training.DEMOS else ("languages", output_dir or what)
    if kind != what and (output_dir is not None or did_you_mean(what, training.DEMOS)):
        advice = f"known are {', '.join(training.DEMOS)}; a folder of that name is ./{what}"
        raise UserError(Exit.USAGE, f"no demo {what}{did_you_mean(what, training.DEMOS)} ({advice})")
    if folder is None:
        folder = "runs/demo" if kind == "languages" else f"runs/demo-{kind}"
    results = training.demo(folder, training.TrainOptions(resume=resume, overwrite=overwrite), kind)
    _print_results(results, as_json)
    if not as_json and "scores" in results:
        for text in training.examples(folder, results):
            _print(text)


@app.command()
def version() -> None:
    """Print the version."""
    _print(__version__)


@recipes_app.command("list")
def recipes_list(as_json: Json = False) -> None:
    """List the recipes, and the presets that --config takes.

    \b
    finetune recipes list
    """
    from recipes import PRESETS, RECIPES

    if as_json:
        return _print_json(RECIPES)
    for name, text in RECIPES.items():
        _print_entry(name, text)
    for path in sorted(PRESETS.glob("*.yaml")):
        _print_entry(f"--config {path.stem}", path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    return None


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="recipe")], as_json: Json = False) -> None:
    """Print every setting of a recipe with type, default and meaning.

    \b
    finetune recipes show bert_classification
    """
    _quiet_environment()
    from finetune.commands import runs
    from finetune.config import settings

    found = settings(runs.recipe_module(name).Config)
    if as_json:
        rows = [{"key": s.path, "type": s.type_name, "default": s.default, "help": s.help} for s in found]
        return _print_json(rows)
    for setting in found:
        plain = setting.default is None or isinstance(setting.default, bool)
        default = json.dumps(setting.default) if plain else setting.default
        _print(f"{setting.path}={default}\n    {setting.help} ({setting.type_name})")
    return None


@recipes_app.command("schema")
def recipes_schema(name: Annotated[str, typer.Argument(help="recipe")]) -> None:
    """Print a recipe's JSON Schema, so that an editor completes its YAML.

    \b
    finetune recipes schema bert_classification > bert_classification.schema.json
    """
    _quiet_environment()
    from finetune.commands import runs
    from finetune.config import json_schema

    _print_json(json_schema(runs.recipe_module(name).Config))


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="recipe")],
    target: Annotated[str, typer.Argument(help="file or folder to write")] = ".",
) -> None:
    """Copy a recipe into your own file, to change as you like.

    \b
    finetune recipes copy bert_classification my_recipe.py
    """
    _quiet_environment()
    from finetune.commands import runs

    _print(str(runs.copy_recipe(name, target)))


def main() -> NoReturn:
    """Run the command line; every error that a person can mend is one to three lines and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1" and arguments[:1] != ["train"]:
            raise UserError(Exit.USAGE, "several processes can only train; give: finetune train ...")
        code = app(arguments, prog_name="finetune", standalone_mode=False)
        sys.stdout.flush()  # here, so that a closed pipe is met inside this block
    except (UserError, Interrupted) as error:
        if debug:
            traceback.print_exc()
        _leave(f"error: {error}" if isinstance(error, UserError) else str(error), error.code)
    except KeyboardInterrupt:
        _leave("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        _reader_has_left()
        sys.exit(Exit.OK)
    except Exception as error:
        if _is_loss(error):
            _leave("error: another process was lost; go on with --resume", Exit.LOST)
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's, in every release
            _leave(_usage(error), error.exit_code)
        if debug:
            raise
        log = Path(tempfile.gettempdir()) / f"finetune-crash-{os.getpid()}.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        _leave(f"error: a bug in finetune: {type(error).__name__}: {error}\nthe traceback is in {log}", Exit.BUG)
    sys.exit(code or Exit.OK)


def _usage(error: Any) -> str:
    """Return a wrong command line in the form of the other errors; no command at all is answered with the help."""
    text = str(error.format_message()).rstrip()
    if "\n" in text or error.ctx is None:
        return text
    return f"error: {text[:1].lower()}{text[1:].rstrip('.')}; {error.ctx.command_path} --help"


def _leave(message: str, code: int) -> NoReturn:
    if _is_first():
        sys.stderr.write(message + "\n")
    sys.exit(int(code))


def _is_first() -> bool:
    """Tell whether this process reports an error: of several that meet it, the first."""
    joined = sys.modules.get("finetune.processes")
    return os.environ.get("RANK", "0") == "0" if joined is None else bool(joined.first_to_tell())


def _is_loss(error: Exception) -> bool:
    joined = sys.modules.get("finetune.processes")
    return joined is not None and bool(joined.is_loss(error))


def _quiet_environment() -> None:
    """Keep the libraries beneath from talking; must come before they are imported."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it looked for unused parameters in vain
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets would tell a server of another firm
    if "--debug" not in sys.argv and not sys.warnoptions:
        warnings.simplefilter("ignore")


def _reading(**given: str | None) -> list[str]:
    """Return the options of a command that reads another file as settings of data."""
    return [f"data.{name}={value}" for name, value in given.items() if value is not None]


def _check_output(path: str, option: str = "--output") -> None:
    if not Path(path).absolute().parent.is_dir():
        raise UserError(Exit.IO_FAILED, f"{option} {path}: there is no folder {Path(path).parent}")


def _check_picture(path: str | None, *, page: bool) -> None:
    if path is not None:
        _check_output(path)
        fits = {".svg": "SVG", ".png": "PNG"} | ({".html": "a page"} if page else {})
        if Path(path).suffix.lower() not in fits:
            listed = " or ".join(fits)
            raise UserError(Exit.USAGE, f"--output {path}: give a name that ends in {listed}")


def _check_page(path: str | None, option: str = "--report") -> None:
    if path is not None:
        if Path(path).suffix.lower() not in {".html", ".htm"}:
            raise UserError(Exit.USAGE, f"{option} {path}: the page is HTML; give a name that ends in .html")
        _check_output(path, option)


def _prediction_line(row: dict[str, Any]) -> str:
    if "source" in row or "probabilities" not in row:  # texts that were written, or whose gaps were filled
        several = row.get("hypotheses", [row["predicted"]])
        numbered = [f"{place}\t{text}" for place, text in enumerate(several, 1)]
        return "\n".join(numbered if len(several) > 1 else several)
    predicted, probabilities = row["predicted"], row["probabilities"]
    if isinstance(predicted, list):
        named = "|".join(predicted) or "(none)"
        return f"{named}\t{max(probabilities.values()):.3f}\t{row['text']}"
    return f"{predicted}\t{probabilities[predicted]:.3f}\t{row['text']}"


def _print(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
    except BrokenPipeError:
        _reader_has_left()
        raise typer.Exit(Exit.OK) from None


def _print_piece(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _reader_has_left()
        raise typer.Exit(Exit.OK) from None


def _reader_has_left() -> None:
    """End quietly where the other side of the pipe has enough: `finetune ... | head -1`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_entry(name: str, text: str) -> None:
    """Print a name and what it is beside it, on several lines where one of 80 columns is too short."""
    import textwrap

    _print(textwrap.fill(text, 80, initial_indent=f"{name:<33} ", subsequent_indent=" " * 34))


def _print_json(value: Any) -> None:
    _print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, default=str))


def _print_results(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return _print_json(results)
    if "scores" in results:
        from finetune.report.text import results_lines

        for text in results_lines(results, results["output_dir"]):
            _print(text)
    return None
