"""`python -m benchmarks.pack`: where the time goes when a pack is made from checkpoints that are there.

Profiles `ml.generate` from the checkpoints on (1,350 images for MNIST and three models) and prints what each part
took.
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path

import torch

from ml import generate, train
from ml.attacks import ATTACKS
from ml.datasets import DATASETS, load

# What is asked for separately: the function's name and the module it is in.
PARTS = {
    "the attack itself": {(function.__name__, "attacks") for function, _ in ATTACKS.values()},
    "PNGs encoded": {("encode_png", "pixels")},
    "PNGs decoded": {("decode_png", "pixels")},
    "networks asked again": {("predict", "train")},
    "the pack written and checked": {("write", "pack")},
    "checkpoints read": {("load", "checkpoints")},
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="digits")
    parser.add_argument("--attack", choices=sorted(ATTACKS), default="jsma")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    train.add_arguments(parser)
    args = parser.parse_args()
    dataset = load(args.dataset, args.data_dir)
    device = torch.device("cpu")
    schedule = train.schedule_for(args.dataset, args.schedule, args.epochs, args.precision)
    with tempfile.TemporaryDirectory() as folder:

        def make() -> int:
            out = Path(folder) / "pack"
            return len(
                generate.generate(
                    dataset, args.attack, out, args.seed, schedule, device, args.checkpoints
                ).stimuli
            )

        make()  # trains what is missing, and warms up
        with cProfile.Profile() as profile:
            count = make()
    stats = pstats.Stats(profile)
    seconds = {
        (name, Path(path).stem): total
        for (path, _, name), (_, _, _, total, _) in stats.stats.items()  # type: ignore[attr-defined]
    }
    whole = seconds[("generate", "generate")]
    print(f"\n{count} stimuli of {args.dataset} in {whole:.1f} s, {torch.get_num_threads()} threads")
    for part, functions in PARTS.items():
        took = sum(seconds.get(function, 0.0) for function in functions)
        print(f"{part:32}{took:8.2f} s{took / whole:8.1%}")


if __name__ == "__main__":
    main()
