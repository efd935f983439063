"""The reference's side: a thin driver around the functions of a DatasetCondensation checkout that
the user supplies.

Networks, gradient distance, epochs and evaluation are its own functions, called as its `main.py`
calls them for DC and DSA, its `main_DM.py` for DM, with ConvNet (instance norm, hence no statistics
to freeze). Only what these hold inline is said again here.
"""

import copy
import hashlib
import re
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddlib.support.errors import DDError

FILES = ("utils.py", "networks.py")
STRATEGY = "color_crop_cutout_flip_scale_rotate"
reference = None  # the checkout's `utils`, once loaded


def fingerprint(folder):
    """What tells one version of the checkout from another; `DDError` if `folder` is no such
    checkout.
    """
    missing = [name for name in FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise DDError(
            f"--reference {folder} has no {missing[0]}; "
            "needed: a checkout of VICO-UoE/DatasetCondensation"
        )
    return hashlib.sha256(
        b"".join((Path(folder) / name).read_bytes() for name in FILES)
    ).hexdigest()[:10]


def load(folder):
    """Import the checkout's `utils`, mended in memory where today's libraries refuse it: a module
    that scipy dropped (not used here), and an assignment of a tensor's own part in `DiffAugment`.
    """
    global reference
    fingerprint(folder)
    dropped = types.ModuleType("scipy.ndimage.interpolation")
    dropped.rotate = None
    sys.modules["scipy.ndimage.interpolation"] = dropped
    sys.path.insert(0, str(Path(folder).resolve()))
    reference = sys.modules["utils"] = types.ModuleType("utils")
    path = Path(folder) / "utils.py"
    source = re.sub(r"(\w+)\[:\] = \1\[0\]", r"\1[:] = \1[0].clone()", path.read_text())
    exec(compile(source, path, "exec"), vars(reference))
    return sys.modules[__name__]


def settings(case, device):
    """Its command-line settings that its functions look at. Its evaluator trains one epoch more
    than `epoch_eval_train`.
    """
    return types.SimpleNamespace(
        device=str(device),
        dis_metric="ours",
        dsa=False,
        dc_aug_param=None,
        lr_net=0.01,
        batch_train=256,
        epoch_eval_train=case["epochs"] - 1,
    )


def get_net(case, name=None):
    name = name or case["net"]
    side = (case["side"], case["side"])
    return reference.get_network(
        f"ConvNetW{case['width']}" if name == "ConvNet" else name, 3, case["classes"], side
    )


class Matching:
    """Inputs and the part of its loop that is inline: sampling real images, and the matching loss
    over all classes.
    """

    def __init__(self, case, data, images):
        self.case, self.data, self.args = case, data, settings(case, data.device)
        self.images = images.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)
        self.criterion = nn.CrossEntropyLoss().to(data.device)
        labels = data.y_train.cpu().numpy()
        self.rows = [np.flatnonzero(labels == c) for c in range(case["classes"])]
        self.strategy = "" if case["method"] == "dc" else STRATEGY

    def batches(self):
        """For each class: its number, real images and synthetic ones, both augmented alike."""
        for c, own in enumerate(self.images.split(self.case["ipc"])):
            rows = np.random.permutation(self.rows[c])[: self.case["batch_real"]]  # noqa: NPY002
            seed = int(1000 * time.time()) % 100_000
            shown = [
                reference.DiffAugment(
                    images, self.strategy, seed=seed, param=reference.ParamDiffAug()
                )
                for images in (self.data.x_train[rows], own)
            ]
            yield c, *shown

    def gradient(self, net, images, c, **graph):
        labels = torch.full((len(images),), c, dtype=torch.int64, device=images.device)
        return torch.autograd.grad(
            self.criterion(net(images), labels), list(net.parameters()), **graph
        )

    def step(self, net):
        """Its matching step: the loss of all classes is summed first, then one backward pass.
        Returns the loss.
        """
        loss = torch.tensor(0.0, device=self.data.device)
        for c, images, own in self.batches():
            real = [g.detach().clone() for g in self.gradient(net, images, c)]
            loss = loss + reference.match_loss(
                self.gradient(net, own, c, create_graph=True), real, self.args
            )
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def distribution(self):
        """Its iteration of DM: a fresh net that is not trained, embeddings, one update."""
        net = get_net(self.case).train().requires_grad_(False)
        loss = torch.tensor(0.0, device=self.data.device)
        for _, real, own in self.batches():
            target = net.embed(real).detach().mean(0)
            loss = loss + (target - net.embed(own).mean(0)).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def loader(self, labels):
        images = copy.deepcopy(self.images.detach())
        return loader(images, copy.deepcopy(labels), shuffle=True)

    def epoch(self, batches, net, optimizer):
        reference.epoch("train", batches, net, optimizer, self.criterion, self.args, aug=False)


def loader(images, labels, shuffle):
    return torch.utils.data.DataLoader(
        reference.TensorDataset(images, labels), batch_size=256, shuffle=shuffle, num_workers=0
    )


def time_step(case, side, data, images, labels, clock):
    """One matching step: draw the real batches, matching loss of all classes, gradient of the
    pixels. No update.
    """
    net, matching = get_net(case), Matching(case, data, images)
    net.train()
    clock.run(lambda: matching.step(net))


def time_epoch(case, side, data, images, labels, clock):
    """One epoch of the inner loop."""
    net, matching = get_net(case), Matching(case, data, images)
    optimizer, batches = torch.optim.SGD(net.parameters(), lr=0.01), matching.loader(labels)
    clock.run(lambda: matching.epoch(batches, net, optimizer))


def time_iteration(case, side, data, images, labels, clock):
    """Whole iterations: a fresh net, its outer steps, its inner epochs (fewer of both where the
    case says so).
    """
    matching, (outer, inner) = Matching(case, data, images), reference.get_loops(case["ipc"])
    outer, inner = min(outer, case["outer"]), min(inner, case["inner"])

    def iteration():
        net = get_net(case)
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for step in range(outer):
            loss = matching.step(net)
            matching.optimizer.step()
            loss.item()
            if step < outer - 1:
                batches = matching.loader(labels)
                for _ in range(inner):
                    matching.epoch(batches, net, optimizer)

    clock.run(matching.distribution if case["method"] == "dm" else iteration)


def time_evaluation(case, side, data, images, labels, clock):
    """Its evaluator, one net per repetition; then testing alone. Test images come from memory: no
    decoding, as for ddlib.
    """
    args, batches = (
        settings(case, data.device),
        loader(data.x_test.cpu(), data.y_test.cpu(), shuffle=False),
    )
    args.dc_aug_param = reference.get_daparam("CIFAR10", "ConvNet", case["net"], case["ipc"])
    criterion = nn.CrossEntropyLoss()

    def evaluate():
        reference.evaluate_synset(
            0, get_net(case), copy.deepcopy(images), copy.deepcopy(labels), batches, args
        )

    clock.run(evaluate)
    net = get_net(case)
    test = type(clock)(data.device, 1, clock.repeats)
    test.run(lambda: reference.epoch("test", batches, net, None, criterion, args, aug=False))
    return {"test_seconds": test.seconds}


WORKS = {
    "step": time_step,
    "epoch": time_epoch,
    "iteration": time_iteration,
    "evaluation": time_evaluation,
}
