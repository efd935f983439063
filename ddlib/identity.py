"""What sets and rows are called in results: everything that decides them, and nothing else."""

from dataclasses import asdict, replace

from .config import EvalConfig
from .data import Data
from .losses import PROTOCOLS, Protocol
from .nets import AnyNet, net_class, net_name, net_width
from .results import DISTILLATION, EVALUATION, NESTED
from .support.code import code_of
from .support.public import APART
from .support.store import canonical, digest
from .synset import SyntheticSet

# The evaluation version. Raise it whenever the same net, set and seed may come out otherwise: no
# table cell mixes two. 1: until 2026-11-21; 2: gradients laid out as their weights (LeNet and
# AlexNet were wrong), max pooling by whole tensors.
VERSION = 2


def eval_seeds(synset: SyntheticSet, n: int, seed: int = 0) -> range:
    """The eval seeds of n nets on a set, from `APART` times the set's own seed on.

    So nets on sets of different seeds share no weights, as an interval over sets requires, and nets
    of different methods at one set seed do, which pairing removes.
    """
    first = seed + APART * identity_of(synset)["seed"]
    return range(first, first + n)


def splits(split: str) -> tuple[str, ...]:
    """The names of the splits that are tested: "both" means validation and test."""
    return ("val", "test") if split == "both" else (split,)


def describe_row(
    synset: SyntheticSet,
    protocol: Protocol,
    net: AnyNet,
    eval_seed: int,
    teacher: AnyNet | None,
    split: str,
    config: EvalConfig,
    content: str = "",
) -> dict:
    """A row's identity (`results.KEY`): everything but the result and the machine.

    Settings are those that differ from the defaults and matter to these nets; teacher, tau and
    alpha wherever they are used; the data's `content`, unless their name says enough; and the
    `code` of nets and protocols that are not ddlib's or a library's.
    """
    used = net_width(net, config)
    used |= net_width(teacher, replace(config, norm=None)) if teacher else {}
    theirs = None if PROTOCOLS.get(protocol.name) == protocol else protocol
    unused = {"width", "depth", "width_factor", "norm"} - set(used)
    unused |= {"teacher_lr", "options"} | ({"alpha", "tau"} if theirs is None else set())
    own = {k: v for k, v in config.options.items() if v != protocol.options[k]}
    changed = own | {
        name: value
        for name, value in asdict(config).items()
        if name not in unused and value != EVALUATION[name]
    }
    if teacher:
        changed |= {"teacher": net_name(teacher), "alpha": config.alpha, "tau": config.tau}
        if protocol.prepare is None and config.teacher_lr not in (None, config.lr):
            changed |= {"teacher_lr": config.teacher_lr}
    elif protocol.teacher != "never":
        changed |= {"alpha": config.alpha}
    changed |= {"data": content} if content else {}
    written = [code_of(one) for one in (net_class(net), theirs, teacher and net_class(teacher))]
    changed |= {"code": "-".join(filter(None, written))} if any(written) else {}
    return {
        "set": set_key(synset),
        "net": net_name(net),
        "protocol": protocol.name,
        "settings": canonical(changed),
        "eval_seed": eval_seed,
        "split": split,
        "evaluation": VERSION,
    }


def describe_set(synset: SyntheticSet, data: Data) -> dict:
    """A line of the table of sets (`results.SETS`)."""
    named, origin = identity_of(synset), synset.provenance
    irrelevant = {*named, "snapshots", *NESTED}
    changed = synset.config.get("options", {}) | {
        k: v for k, v in synset.config.items() if k not in irrelevant and v != DISTILLATION.get(k)
    }
    held_out = len(data.y_val) / (len(data.y_val) + len(data.y_train))
    changed["val_fraction"] = round(held_out, 3)
    made = {"settings": canonical(changed), "seconds": origin.get("seconds", 0.0)}
    return {"set": set_key(synset)} | named | made | machine_text(origin)


def identity_of(synset: SyntheticSet) -> dict:
    """What a set is called in results."""
    about = synset.config
    pool = about.get("pool", "unknown")
    base = about.get("method", "dc" if pool != "unknown" else "unknown")
    outside = {k: v for k, v in synset.provenance.items() if k in ("extras", "images") and v}
    images = outside.get("images", about.get("images", "pixels"))
    wrapped = [*about.get("extras", ()), *outside.get("extras", "").split(", ")]
    wrapped = [name for name in (*wrapped, images) if name not in ("", "pixels")]
    return {
        "method": "+".join(wrapped) or base,
        "base": base if wrapped else about.get("base", ""),
        "pool": pool,
        "dataset": synset.dataset,
        "ipc": synset.ipc,
        "iteration": synset.iteration,
        "seed": about.get("seed", 0),
    }


def set_key(synset: SyntheticSet) -> str:
    """A set's key in results: its pixels and what it is called.

    A model pool that has not drawn another net yet has the baseline's pixels, and is still another.
    """
    return digest(canonical(identity_of(synset) | {"id": synset.id}))[:12]


def machine_text(about: dict) -> dict:
    """Hardware and versions of `machine.environment` as two columns."""
    names = {"device": "", "python": "python ", "torch": "torch "}
    parts = [f"{text}{about[name]}" for name, text in names.items() if name in about]
    return {"machine": "; ".join(parts), "revision": about.get("revision", "")}
