"""Three questions to the sequence-to-sequence models; each answer is a table, figures and pictures in data/studies/.

python tests/benchmarks/seq2seq_studies.py bottleneck     one fixed vector or attention, by source length
python tests/benchmarks/seq2seq_studies.py parallelism    LSTM or Transformer: speed by length
python tests/benchmarks/seq2seq_studies.py scaling        dot products with or without 1/sqrt(d), by head size
python tests/benchmarks/seq2seq_studies.py bottleneck --runs RUN RUN     chrF by source length of finished runs
python tests/benchmarks/seq2seq_studies.py parallelism --runs RUN RUN    seconds to a validation loss of finished runs

Trainings lie in runs/studies/; a study that was interrupted goes on where it was. One thread, or as --threads says.
"""

import argparse
from pathlib import Path

import torch
from studies import bottleneck, parallelism, scaling
from studies.learning import Pairs
from studies.parallelism import Measure
from studies.scaling import Study

from finetune import cpu, pretrained

ROOT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(dest="study", required=True)
    first, second, third = (studies.add_parser(name) for name in ("bottleneck", "parallelism", "scaling"))
    for study in (first, second, third):
        study.add_argument("--threads", type=int, default=1)
        study.add_argument("--output", type=Path, default=ROOT / "data" / "studies")
    for study in (first, third):
        study.add_argument("--trainings", type=Path, default=ROOT / "runs" / "studies", help="where their runs lie")
        study.add_argument("--task", choices=["copy", "reverse", "sort"], default="reverse")
    first.add_argument("--runs", nargs="+", help="finished runs on the same test rows; nothing is trained")
    first.add_argument("--updates", type=int, default=1000)
    first.add_argument("--width", type=int, default=64, help="of the LSTM without attention; the others have its size")
    first.add_argument("--edges", type=int, nargs="+", help="longest source of each bucket")
    first.add_argument("--seed", type=int, default=1)
    second.add_argument("--runs", nargs="+", help="finished runs on the same validation rows; nothing is measured")
    second.add_argument("--losses", type=float, nargs="+", default=[], help="with --runs: seconds to these")
    second.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    second.add_argument("--width", type=int, default=256)
    second.add_argument("--layers", type=int, default=2)
    second.add_argument("--vocabulary", type=int, default=4000)
    second.add_argument("--tokens", type=int, default=2048, help="of the target in a batch")
    second.add_argument("--sentences", type=int, default=16, help="decoded side by side")
    second.add_argument("--repeats", type=int, default=5)
    second.add_argument("--use-cpu", action="store_true")
    third.add_argument("--updates", type=int, default=150)
    third.add_argument("--heads", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    third.add_argument("--trained", type=int, nargs="+", default=[8, 32, 128, 256])
    third.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args()


def main() -> None:
    """Answer one question."""
    given = arguments()
    torch.set_num_threads(given.threads)
    cpu.keep_freed_memory()
    pretrained.quiet()
    if given.study == "bottleneck" and given.runs:
        bottleneck.tell_runs(given.runs, given.edges, given.output)
    elif given.study == "bottleneck":
        pairs = Pairs(given.task, words=10, shortest=4, longest=30, updates=given.updates, test_rows=2000)
        edges = given.edges or [6, 10, 14, 18, 22, 26, 30]
        bottleneck.tell(pairs, given.width, edges, given.seed, given.trainings / "bottleneck", given.output)
    elif given.study == "parallelism" and given.runs:
        parallelism.tell_runs(given.runs, given.output, given.losses)
    elif given.study == "parallelism":
        names = ("lengths", "width", "layers", "vocabulary", "tokens", "sentences", "repeats")
        parallelism.tell(Measure(**{name: vars(given)[name] for name in names}), given.output, given.use_cpu)
    else:
        pairs = Pairs(given.task, words=10, shortest=3, longest=10, updates=given.updates, test_rows=500)
        study = Study(pairs, given.heads, given.trained, given.seeds)
        scaling.tell(study, given.trainings / "scaling", given.output)


if __name__ == "__main__":
    main()
