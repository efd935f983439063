"""Sentences and tables of README and docs: frames in, Markdown or a frame of texts out."""

from dataclasses import replace
from functools import partial
from itertools import product

import pandas as pd

from ..stats import UNIT, given, holm, interval, p_above, p_below, summarise
from ..study.profiles import Profile
from .audit import (
    CLAIMS,
    CLASS_MEANS,
    GAIN,
    LOSS,
    MARGIN,
    POOL,
    SETS,
    SIDE,
    Scope,
    audit,
    averages,
    claim_cells,
    claims,
    differences,
    effect_text,
    escaped,
    pick,
    signed,
)
from .published import printed_accuracy, stored_against_printed
from .released import released_rows
from .selection import arms, one_set_of_means
from .tables import FREE, NETS, in_order, line_of, read_published

BEST = "model pool + KD"  # of Table 4's methods
THEIR_SETS = "the authors' sets"
NOT_MEASURED = "not measured"
FEWEST_FIGURES = 10  # printed figures of an ipc, of which README says with how many a loss agrees
CHANCE = 10.0  # percent: what a net that never learns gets on CIFAR-10's test images


def mean_gains_sentence(verdicts: pd.DataFrame) -> str:
    """What the pool adds to each method on the mean over nets under plain cross-entropy
    (`methods.pool_verdicts`); nothing where no method has all nets.
    """
    own = verdicts[(verdicts["trained with"] == "CE") & (verdicts["mean gain"] != "")]
    if own.empty:
        return ""
    lines = own.to_dict("records")
    gains = ", ".join(
        f"{one['method']} {escaped(one['mean gain'])} ({one['verdict']})" for one in lines
    )
    ns = " or ".join(dict.fromkeys(own["n"]))
    nets = own["measured"].iloc[0].rpartition(" of ")[2]
    return f"What the model pool adds, mean over {nets}, plain cross-entropy, n {ns}: {gains}.\n"


def settings_table(profile: Profile) -> pd.DataFrame:
    """A line per method of a profile: how its sets are distilled."""
    lines = []
    for name in profile.methods:
        config = profile.distill_config("main", 0, method=name).resolved()
        loops = config.parts()["objective"].loops(config.ipc)
        outer, inner = (a or b for a, b in zip((config.outer, config.inner), loops, strict=True))
        between = f" of {inner} epochs" * (outer > 1)
        line = {"method": name, "ipc": config.ipc, "iterations": config.iterations}
        line |= {"pixel steps in each": f"{outer}{between}", "from": config.init}
        line |= {"pixel rate": f"{config.lr_images:g}"}
        line |= {"real images a class": config.batch_real, "extras": ", ".join(config.extras)}
        told = profile.methods[name].get("options", {})
        lines.append(line | {"options": ", ".join(f"{k} {v}" for k, v in told.items())})
    return pd.DataFrame(lines)


def claims_by_ipc(found: pd.DataFrame, name: str = "") -> pd.DataFrame:
    """Verdicts by claim and ipc, with how many cells are measured and what decides; ipcs without
    any are left out.
    """
    verdicts = found["verdict"] + " (" + found["measured"] + ")"
    verdicts += (": " + found["decides"]).where(found["decides"] != "", "")
    ipcs = name + "ipc " + found["ipc"].astype(str)
    columns = {"#": found["number"], "claim": found["claim"], "ipc": ipcs, "cell": verdicts}
    known = found["ipc"].isin(found.loc[found["n"] != "", "ipc"])
    table = pd.DataFrame(columns)[known].pivot(index=["#", "claim"], columns="ipc", values="cell")
    return table[list(dict.fromkeys(ipcs[known]))]


def agreement_table(found: pd.DataFrame) -> pd.DataFrame:
    """A line per printed row of Table 4, a column per way of training: with how many nets it
    agrees, and with which not.
    """
    lines = []
    places = ["ipc", "iteration", "printed"]
    for (ipc, iteration, printed), group in found.groupby(places, sort=False):
        line = {"ipc": ipc, "iteration": iteration, "printed row": printed}
        for arm, cells in group.groupby("arm", sort=False):
            line[arm] = agreeing(cells)
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def agreeing(cells: pd.DataFrame) -> str:
    """How many lines of `audit.compatible` agree, and the nets of those that do not."""
    if cells.empty:
        return NOT_MEASURED
    other = in_order(set(cells.loc[cells["agrees"] == "no", "net"]))
    but = f"; not {', '.join(other)}" if other else ""
    return f"{sum(cells['agrees'] != 'no')} of {len(cells)}{but}"


def stored_table() -> pd.DataFrame:
    """`published.stored_against_printed`, a column per net."""
    cells = stored_against_printed()
    printed = [cells[f"printed {which} KD"].map("{:.1f}".format) for which in ("without", "with")]
    stored = cells["stored"].map("{:.1f}".format) + " ± " + cells["half"].map("{:.1f}".format)
    cells["text"] = stored + " (" + printed[0] + " / " + printed[1] + ")"
    table = cells.pivot(index=["ipc", "images"], columns="net", values="text")
    return table[in_order(table.columns)].reset_index()


def stored_sentence() -> str:
    """With how many of Table 4's figures without and with KD the authors' own stored accuracies of
    plain cross-entropy agree.
    """
    cells = stored_against_printed()
    counts = cells["within"].value_counts()
    alone = cells[cells["within"] == "with"]
    named = alone.groupby(["ipc", "images"])["net"].agg(lambda nets: " and ".join(in_order(nets)))
    where = "; ".join(f"ipc {ipc}, {images} sets: {nets}" for (ipc, images), nets in named.items())
    return (
        f"Of {len(cells)} pairs of printed figures the stored accuracy agrees in "
        f"{counts.get('with', 0)} with the one *with* KD alone ({where}), in "
        f"{counts.get('without', 0)} with the one without KD alone, in {counts.get('both', 0)} "
        f"with both and in {counts.get('neither', 0)} with neither.\n"
    )


def loss_table(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """With how many figures that Table 4 prints without and with KD half and a whole cross-entropy
    agree, on our sets and on the authors' (`audit.compatible` of both), and with which not.
    """
    with_kd, without = zip(*SETS.values(), strict=True)
    kinds, lines = ((without, "without KD"), (with_kd, "with KD")), []
    for ipc, (printed, name) in product(sorted({*ours["ipc"], *theirs["ipc"]}), kinds):
        line = {"ipc": ipc, "figures printed": name}
        for found, whose in ((ours, "our sets"), (theirs, THEIR_SETS)):
            cells = found[(found["ipc"] == ipc) & found["printed"].isin(printed)]
            for arm in ("½ CE", "CE"):
                line[f"{arm}, {whose}"] = agreeing(cells[cells["arm"] == arm])
        lines.append(line)
    return pd.DataFrame(lines)


def losses_sentences(theirs: pd.DataFrame) -> str:
    """With how many figures half and a whole cross-entropy agree on the authors' sets, and on which
    nets that differs; of an ipc with `FEWEST_FIGURES` or more under both.
    """
    sentences = []
    known = theirs[theirs["arm"].isin(["½ CE", "CE"])]
    for ipc, own in known.groupby("ipc"):
        figures = own.pivot(index=["iteration", "printed", "net"], columns="arm", values="agrees")
        figures = figures.reindex(columns=["½ CE", "CE"]).dropna() != "no"
        if len(figures) < FEWEST_FIGURES:
            continue
        printed, nets = (figures.index.get_level_values(name) for name in ("printed", "net"))
        kinds = [figures[printed.str.contains("KD") == kd] for kd in (False, True)]
        half, whole = (
            [f"{kind[arm].sum()} of {len(kind)}" for kind in kinds] for arm in ("½ CE", "CE")
        )
        differ = in_order(set(nets[figures["½ CE"] != figures["CE"]]))
        left = [net for net in NETS if net not in set(nets)]
        sentences.append(
            f"At ipc {ipc} half a cross-entropy agrees, on {THEIR_SETS}, with {half[0]} figures "
            f"printed without KD and {half[1]} printed with it, a whole one with {whole[0]} and "
            f"{whole[1]}; they differ on {', '.join(differ) or 'no net'}"
            + f"; not judged: {', '.join(left)}" * bool(left)
            + "."
        )
    return " ".join(sentences) + "\n"


def other_half_sentence(rows: pd.DataFrame, scope: Scope) -> str:
    """Whether the gain of a whole over half a cross-entropy on the authors' sets is what Table 4
    prints as KD's, ipc by ipc.
    """
    question = "Is the printed gain of KD that of a whole over half a cross-entropy on these sets?"
    lines, found = half_ce_lines(rows, scope), []
    for ipc, own in lines[lines["agrees"] != ""].groupby("ipc"):
        agree, but = own["agrees"] == "yes", listed(own[own["agrees"] == "no"])
        found.append(f"At ipc {ipc} it is not excluded in {agree.sum()} of {len(own)} cells")
        found[-1] += f", but in the others{but}" * bool(but) + "."
    return " ".join([question, *found, "Gains below a point say little."]) + "\n"


def large_gains_sentence(rows: pd.DataFrame, scope: Scope) -> str:
    """What a whole cross-entropy adds to half a one on the authors' sets, of all cells where Table
    4 prints a gain by KD of a point or more.
    """
    lines = half_ce_lines(rows, scope)
    printed = lines[lines["published"] >= MARGIN]
    if not (printed["agrees"] != "").any():
        return ""
    clear = printed["outcome"].isin([GAIN, LOSS])
    agree, differ = printed["agrees"] == "yes", printed["agrees"] == "no"
    alike, other = printed[agree & clear], printed[differ]
    told = [
        f"as much, within the noise, in {len(alike)}{listed(alike)}",
        f"another amount in {len(other)}{listed(other)}",
        f"in {(agree & ~clear).sum()} the interval holds both 0 and the printed gain",
    ]
    left = printed[printed["agrees"] == ""].to_dict("records")
    cells = ", ".join(f"{one['net']}, {images_in(one)}" for one in left)
    return (
        f"Table 4 prints {len(printed)} gains by KD of a point or more. On the authors' own "
        f"images, without any teacher, a whole cross-entropy adds to half a one {'; '.join(told)}"
        + f"; not judged: {cells}" * bool(cells)
        + ".\n"
    )


def half_ce_lines(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """What a whole cross-entropy adds to half a one on the authors' sets: lines of `audit`."""
    lines = audit(released_rows(rows), scope)
    return lines[lines["point"] == "half-ce"]


def listed(lines: pd.DataFrame) -> str:
    """The cells of such lines, each beside what is printed, in brackets; "" without lines."""
    texts = [
        f"{one['net']}, {images_in(one)}: {escaped(effect_text(one))}, "
        f"printed {signed(one['published'])}"
        for one in lines.to_dict("records")
    ]
    return f" ({'; '.join(texts)})" if texts else ""


def images_in(line: dict) -> str:
    """The images of a line of `audit`: "baseline sets at ipc 1"."""
    return f"{line['comparison'].rpartition(', ')[2]} at ipc {line['ipc']}"


def control_sentence(found: pd.DataFrame) -> str:
    """What `released.control` says: on which nets our evaluation gives what Table 5 prints."""
    wrong = found[found["agrees"] == "no"]
    texts = [
        f"{one.net} at ipc {one.ipc} (printed {one.published:.1f}, ours {one.mean:.1f}, n {one.n})"
        for one in wrong.itertuples()
    ]
    but = f", not for {', '.join(texts)}" if texts else ""
    return (
        f"The control: Table 5 prints plain cross-entropy on these very pool sets. Ours agrees for "
        f"{len(found) - len(wrong)} of {len(found)} nets and ipcs{but}.\n"
    )


def free_cells(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """Images that cost nothing, then distilled ones, plain cross-entropy, at the first ipc and
    iteration: `stats.summarise` by images and net.
    """
    tested, (ipc, at) = arms(rows), (scope.ipcs[0], scope.iterations[0])
    names = {**dict.fromkeys(FREE, 0), **dict.fromkeys(SETS, at)}
    parts = [pick(tested, images, "CE", ipc, iteration) for images, iteration in names.items()]
    cells = summarise(one_set_of_means(pd.concat(parts)), ["images", "net"])
    return cells[cells["net"].isin(scope.nets)].sort_values(
        "images", key=lambda images: images.map([*names].index), kind="stable", ignore_index=True
    )


def printed_best(scope: Scope) -> dict[str, float]:
    """Net -> what Table 4 prints for its best method, at the first ipc and iteration."""
    place = scope.ipcs[0], scope.iterations[0], BEST
    return {net: printed_accuracy(read_published(4), *place, net) for net in scope.nets}


def free_table(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """`free_cells` as a table, a column per net; last what Table 4 prints for its best method."""
    groups = free_cells(rows, scope).groupby("images", sort=False)
    lines = [{"images": images} | line_of(own, scope.nets) for images, own in groups]
    printed = printed_best(scope).items()
    texts = {net: "" if pd.isna(value) else f"{value:.1f}" for net, value in printed}
    return pd.DataFrame([*lines, {"images": f"printed: {BEST}", "n": "1×10"} | texts])


def free_sentence(cells: pd.DataFrame, ipc: int) -> str:
    """On which nets class means beat distilled images, and where distilled images beat both kinds
    of means: the cells of `audit.claim_cells`, with Holm's correction for their number.
    """
    own = cells[(cells["claim"] == CLASS_MEANS) & (cells["ipc"] == ipc) & (cells["net"] != "mean")]
    own = own[own.groupby("net")["n"].transform(lambda n: (n != "").all())]  # all four of a net
    if own.empty:
        return "Class means: not measured yet."
    free, found = own["comparison"].str.partition(" − ")[2], own.to_dict("records")
    texts = []
    for correct in (partial(holm, level=SIDE), lambda ps: [p <= SIDE for p in ps]):
        loses, gains = (
            pd.Series(correct([p(cell) for cell in found]), own.index) for p in (p_below, p_above)
        )
        lost = loses.groupby([own["net"], free]).all().reset_index()
        kinds = lost[lost[0]].groupby("net")[free.name].agg(" and ".join)
        won = gains.groupby(own["net"]).all()
        ahead = [f"{net} ({kinds[net]})" for net in in_order(kinds.index)]
        texts.append((ahead, in_order(won[won].index)))
    (ahead, behind), (alone, alone_behind) = texts
    more = {"class means": [one for one in alone if one not in ahead]}
    more["distilled sets"] = [net for net in alone_behind if net not in behind]
    also = " and ".join(f"{who} on {', '.join(nets)}" for who, nets in more.items() if nets)
    measured = f"{own['net'].nunique()} nets measured{given(found)}"
    return (
        f"Class means beat both distilled sets on {', '.join(ahead) or 'no net'}; both distilled "
        f"sets beat both kinds of class means on {', '.join(behind) or 'no net'} ({measured}; "
        "Holm's correction over all differences)."
        + f" By single intervals, without that correction, also {also}."
        * bool(also)
    )


def other_pools_sentence(rows: pd.DataFrame, scope: Scope, reference: pd.DataFrame) -> str:
    """How nets and sets of the pools fared that claim 4 compares, at the first ipc and iteration;
    whether `reference`, rows of the paper's own schedule, has these pools.
    """
    tested, place = arms(rows), (scope.ipcs[0], scope.iterations[0])
    comparisons, far = CLAIMS[4].comparisons, []
    names = [*(comparison.b[0] for comparison in comparisons), POOL[0]]
    groups = {name: pick(tested, name, "CE", *place) for name in names}
    if any(own.empty for own in groups.values()):
        return ""
    ends = [f"{own['diverged'].sum()} of {len(own)} on {name}" for name, own in groups.items()]
    for comparison in comparisons:
        gains = differences(tested, comparison, *place)
        by_set = averages(averages(gains[gains["net"] != "ConvNet"], [UNIT, "net"]), [UNIT])
        near = (by_set["accuracy"].abs() < MARGIN).sum()
        far.append(f"{near} of {len(by_set)} sets of {comparison.b[0]}")
    known = arms(reference)["images"].isin(names[:-1]).any()
    return (
        f"Behind claim 4: nets that diverge, by sets: {', '.join(ends)}. Within a point of the "
        f"pool's set of the same seed, by the mean over nets: {', '.join(far)}."
        + " Neither of the two pools is measured on the paper's own schedule." * (not known)
        + "\n"
    )


def kd_sentence(rows: pd.DataFrame, scope: Scope) -> str:
    """How many AlexNets never learn under each way of training, and what claim 3 is without that
    net.
    """
    ipc, tested, counts = scope.ipcs[0], arms(rows), []
    own = tested[(tested["net"] == "AlexNet") & (tested["ipc"] == ipc)]
    own = own[(own["iteration"] == scope.iterations[0]) & own["images"].isin(SETS)]
    for arm in ("KD", "CE", "KD, lr chosen", "CE, lr chosen"):
        tried = own[own["arm"] == arm]
        at_end = f"{(tried['accuracy'] == CHANCE).sum()} of {len(tried)} under {arm}"
        counts.append(f"{at_end} ({tried['diverged'].sum()} diverged)")
    others = replace(scope, nets=tuple(net for net in scope.nets if net != "AlexNet"))
    found = claims(claim_cells(rows, others)).query("number == 3 and ipc == @ipc").iloc[0]
    return (
        f"Nets of AlexNet that end at {CHANCE:g}%: {', '.join(counts)}. Without AlexNet claim 3 is "
        f"*{found['verdict']}* ({found['measured']}): {escaped(found['evidence'])}\n"
    )


def half_ce_by_ipc(rows: pd.DataFrame, scope: Scope) -> str:
    """`half_ce_sentence` on the authors' own sets, at each ipc of the net that a whole and half a
    cross-entropy differ most on, of those where an interval leaves 0 out.
    """
    lines, found = audit(rows, scope), []
    told = (lines["point"] == "half-ce") & lines["outcome"].isin([GAIN, LOSS])
    for ipc, own in lines[told].groupby("ipc"):
        net = own.loc[own["mean"].abs().idxmax(), "net"]
        found.append(half_ce_sentence(rows, scope, net, ipc))
    start = f"Where both differ most on {THEIR_SETS}, among differences that leave 0 out: "
    return start + " ".join(found) + "\n" if found else ""


def half_ce_sentences(rows: pd.DataFrame, scope: Scope) -> str:
    """`half_ce_sentence` of the nets that tell a whole and half a cross-entropy apart most."""
    sentences = [half_ce_sentence(rows, scope, net) for net in ("ResNet18", "AlexNet")]
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def half_ce_sentence(rows: pd.DataFrame, scope: Scope, net: str, ipc: int | None = None) -> str:
    """What a net reaches on the same images with a whole and half a cross-entropy, beside what
    Table 4 prints for it. `ipc`: the first one unless given.
    """
    tested, table4, texts = arms(rows), read_published(4), []
    ipc, iteration = ipc or scope.ipcs[0], scope.iterations[0]
    for images, (with_kd, without) in SETS.items():
        own = tested[(tested["images"] == images) & (tested["net"] == net) & (tested["ipc"] == ipc)]
        own = own[own["iteration"] == iteration]
        means = {arm: interval(rows)["mean"] for arm, rows in own.groupby("arm")}
        printed = [printed_accuracy(table4, ipc, iteration, m, net) for m in (without, with_kd)]
        if {"CE", "½ CE"} <= set(means):
            half, whole = (
                f"{means[arm]:.1f}%{at_chance(own[own['arm'] == arm])}" for arm in ("½ CE", "CE")
            )
            texts.append(
                f"on {images} images {half} with half a cross-entropy and {whole} with a whole one "
                f"(printed: {printed[0]:.1f}% without KD, {printed[1]:.1f}% with it)"
            )
    where = f"{net} reaches, at ipc {ipc}, without any teacher, "
    return where + "; ".join(texts) + "." if texts else ""


def at_chance(rows: pd.DataFrame) -> str:
    """How many nets end at chance, diverged or never having learned; "" if none."""
    dead = (rows["accuracy"] == CHANCE).sum()
    text = f" ({dead} of {len(rows)} nets end at {CHANCE:g}%, {rows['diverged'].sum()} diverged)"
    return text * bool(dead)
