"""`python -m benchmarks.jsma`: what JSMA costs beyond its gradients, and beside two other libraries' JSMA.

`--scaling` instead attacks more and more pairs, to see that the time for each and the memory do not grow.

The floor is the forward pass and the two vector-Jacobian products of every step, replayed over exactly the
images that the attack evaluated. torchattacks and adversarial-robustness-toolbox (extra `bench`) attack the
same network and pairs with the same theta and gamma; the latter ranks single pixels instead of pairs.
"""

import argparse
import importlib
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import medians
from ml import attacks, train
from ml.datasets import DATASETS, load, to_float


def pairs(dataset: str, data_dir: Path | None, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The undefended network of the study, and the first test images towards all other labels in turn."""
    data = load(dataset, data_dir)
    device = torch.device("cpu")
    schedule = train.schedule_for(dataset)
    model = train.obtain("undefended", data, schedule, 0, device, Path("checkpoints"))
    right = train.predict(model.network, data.test_images).argmax(1).numpy() == data.test_labels
    sources = np.flatnonzero(right)[: -(-count // 9)]
    chosen = [(i, t) for i in sources for t in range(10) if t != data.test_labels[i]][:count]
    images, targets = np.array(chosen).T
    return model.network, torch.from_numpy(to_float(data.test_images[images])), torch.from_numpy(targets)


def replay(network: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A function that repeats the forward passes and products of one attack, and nothing else of it."""
    batches: list[Tensor] = []

    def recording(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            batches.append(x.detach().clone())
        logits: Tensor = network(x)
        return logits

    attacks.jsma(recording, images, targets)

    def floor() -> None:
        for batch in batches:
            x = batch.requires_grad_()
            logits = network(x)
            one_hot = torch.zeros_like(logits)
            one_hot[:, 0] = 1
            torch.autograd.grad(logits, x, one_hot, retain_graph=True)
            torch.autograd.grad(logits, x, torch.ones_like(logits))

    return floor


def torchattacks_jsma(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The same attack by torchattacks."""
    attack = importlib.import_module("torchattacks").JSMA(network, theta=1.0, gamma=0.25)
    attack.set_mode_targeted_by_label(quiet=True)
    made: Tensor = attack(images.clone(), targets)
    return made


def toolbox_jsma(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The saliency-map attack of adversarial-robustness-toolbox, on the whole batch at once."""
    estimators: Any = importlib.import_module("art.estimators.classification")
    evasion: Any = importlib.import_module("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        model=network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.SaliencyMapMethod(
        classifier, theta=1.0, gamma=0.25, batch_size=len(images), verbose=False
    )
    return torch.from_numpy(attack.generate(images.numpy(), np.eye(10)[targets.numpy()]))


def scaling(dataset: str, data_dir: Path | None) -> None:
    """Prints the time for each pair and the process's peak memory for up to 5,000 pairs."""
    network, images, targets = pairs(dataset, data_dir, 250)
    attacks.jsma(network, images, targets)  # warms up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{'pairs':>8}{'time':>10}{'each':>12}{'peak memory above 250 pairs':>30}")
    for count in (250, 500, 1000, 2500, 5000):
        repeats = -(-count // len(images))  # the same pairs again and again: the same work
        many, aims = images.repeat(repeats, 1, 1, 1)[:count], targets.repeat(repeats)[:count]
        started = time.perf_counter()
        attacks.jsma(network, many, aims)
        took = time.perf_counter() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{count:8}{took:8.1f} s{took / count * 1000:9.2f} ms{grown:26.0f} MiB")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jsma", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--pairs", type=int, default=90)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--floor-only", action="store_true", help="leave the other libraries out")
    parser.add_argument(
        "--scaling", action="store_true", help="up to 5,000 pairs, this project's attack alone"
    )
    args = parser.parse_args()
    if args.scaling:
        scaling(args.dataset, args.data_dir)
        return
    network, images, targets = pairs(args.dataset, args.data_dir, args.pairs)

    def ours() -> Tensor:
        return attacks.jsma(network, images, targets).images

    print(f"{len(images)} pairs of {args.dataset}, undefended network, {torch.get_num_threads()} threads")
    times = medians({"jsma": ours, "floor": replay(network, images, targets)}, args.repetitions)
    print(f"{'forward and two products':32}{times['floor']:8.2f} s")
    print(f"{'jsma':32}{times['jsma']:8.2f} s{times['jsma'] / times['floor']:8.2f} times")
    if args.floor_only:
        return

    # Other libraries' warnings are not our business here.
    warnings.simplefilter("ignore")
    others = {"torchattacks": torchattacks_jsma, "adversarial-robustness-toolbox": toolbox_jsma}
    made = {"this project": ours()} | {name: way(network, images, targets) for name, way in others.items()}
    times = medians(
        {
            "this project": ours,
            "torchattacks": lambda: torchattacks_jsma(network, images, targets),
            "adversarial-robustness-toolbox": lambda: toolbox_jsma(network, images, targets),
        },
        max(1, args.repetitions // 2),
        warm_up=False,
    )
    print(f"\n{'':32}{'time':>10}{'ratio':>8}{'reached':>9}{'pixels':>8}")
    for name, x in made.items():
        with torch.no_grad():
            reached = float((network(x.float()).argmax(1) == targets).float().mean())
        pixels = float((x != images).flatten(1).sum(1).float().mean())
        ratio = times[name] / times["this project"]
        print(f"{name:32}{times[name]:8.2f} s{ratio:8.1f}{reached:9.0%}{pixels:8.1f}")


if __name__ == "__main__":
    main()
