"""The reference's side: a thin driver around the functions of a DatasetCondensation checkout that
the user supplies.

Networks, gradient distance, epochs and evaluation are its own functions, called as its `main.py`
calls them for DC with ConvNet (instance norm, hence no statistics to freeze). Only what `main.py`
holds inline is said again here.
"""

import copy
import hashlib
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddlib.support.errors import DDError

FILES = ("utils.py", "networks.py")
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
    """Import the checkout's `utils`, with a stand-in for a module that scipy dropped (only its
    augmentation uses it).
    """
    global reference
    fingerprint(folder)
    dropped = types.ModuleType("scipy.ndimage.interpolation")
    dropped.rotate = None
    sys.modules["scipy.ndimage.interpolation"] = dropped
    sys.path.insert(0, str(Path(folder).resolve()))
    reference = importlib.import_module("utils")
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
        for c, own in enumerate(self.images.split(self.case["ipc"])):
            rows = np.random.permutation(self.rows[c])[: self.case["batch_real"]]  # noqa: NPY002
            real = [g.detach().clone() for g in self.gradient(net, self.data.x_train[rows], c)]
            loss = loss + reference.match_loss(
                self.gradient(net, own, c, create_graph=True), real, self.args
            )
        self.optimizer.zero_grad()
        loss.backward()
        return loss

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

    clock.run(iteration)


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
