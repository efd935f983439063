"""README's numbers: every table and sentence with a number in it is written by file, between
markers.
"""

import json
from dataclasses import replace
from itertools import product

import pandas as pd

from ..choose import choices
from ..results import read_results
from ..stats import given, holm, p_above, p_below, summarise
from ..study.given import GIVEN
from ..study.plan import ImageSet, plan
from ..study.profiles import PROFILES, Profile
from ..study.released import METHOD as RELEASED_SETS
from ..study.study import PNG
from ..support.store import ROOT, write_atomic
from .audit import (
    CLASS_MEANS,
    MARGIN,
    RULE,
    SETS,
    SIDE,
    Scope,
    audit,
    claim_cells,
    claims,
    compatible,
    effect_text,
    error_rates,
    pick,
    signed,
    spreads_of_nets,
)
from .figures import dots, effects
from .methods import elf_effects, methods_table, pool_effects, pool_verdicts
from .published import printed_accuracy, stored_against_printed
from .released import control, released_compatible, released_rows, released_table
from .schedules import compare_schedules, distillation_times
from .selection import arms, at_chosen_lr, at_usual_lr, comparable, images_name
from .tables import (
    FREE,
    caption,
    cell_text,
    in_order,
    read_published,
    table,
    to_latex,
    to_markdown,
    wide,
)

TABLES = ROOT / "paper" / "tables"
RATES = TABLES / "verdict-rates.csv"
BENCHMARK = ROOT / "benchmarks" / "results" / "amd-epyc-2-threads.json"
BEST = "model pool + KD"  # of Table 4's methods
SHORT = "paper-fast"  # the profile with a shorter schedule
THEIR_SETS = "the authors' sets"
NOT_MEASURED = "not measured"
FEWEST_FIGURES = 10  # printed figures of an ipc, of which README says with how many a loss agrees
CHANCE = 10.0  # percent: what a net that never learns gets on CIFAR-10's test images
NO_POWER = (
    "The narrowest interval is ±{:.1f} points: with so few sets none could have shown equivalence, "
    "whatever the truth is."
)
METHODS = "methods-small"  # the profile that compares methods, whose rows are committed
SCALED = f"{METHODS}-dm-scale"  # the same with DM's gradients scaled to the main model's


def scope_of(profile: Profile) -> Scope:
    """What a profile is to measure."""
    return Scope(profile.ipcs, profile.reported, profile.nets)


def study_files(rows: pd.DataFrame, profile: Profile) -> dict[str, str]:
    """File name (a study's name before it) -> content of all that is written in paper/tables."""
    scope, files = scope_of(profile), {}
    cells_of_claims = claim_cells(rows, scope)
    for number in (4, 5):
        cells = table(rows, number, profile.reported)
        text, layout = caption(cells, rows, profile, number), wide(cells)
        files[f"table{number}.csv"] = to_csv(cells)
        files[f"table{number}.md"] = f"{text}\n\n{to_markdown(layout)}"
        files[f"table{number}.tex"] = to_latex(layout, text)
    tidy = {
        "audit": audit(rows, scope),
        "claims": claims(cells_of_claims),
        "claim-cells": cells_of_claims,
        "compatible": compatible(rows, scope),
        "released-compatible": released_compatible(rows, scope),
        "released-sets": released_table(rows),
        "choices": choice_table(rows),
    }
    return files | {f"{name}.csv": to_csv(frame) for name, frame in tidy.items()}


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV text, four decimals."""
    return frame.to_csv(index=False, float_format="%.4f")


def update_docs(profile: str = "paper") -> None:
    """Write what comes from files into README.md and the pages of docs, between markers."""
    parts = docs_parts(profile) | methods_parts()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for name, content in parts.items():
            head, marker, rest = text.partition(f"<!-- {name} -->\n")
            if marker:
                tail = rest.partition(f"<!-- end {name} -->")[2]
                text = f"{head}{marker}{content}<!-- end {name} -->{tail}"
        write_atomic(path, text)


def docs_parts(profile: str) -> dict[str, str]:
    """Marker -> Markdown, from the committed rows of a profile and the simulated error rates."""
    rows, scope = committed_rows(profile), scope_of(PROFILES[profile])
    theirs, ipc = released_compatible(rows, scope), scope.ipcs[0]
    return full_width_parts(rows_of_methods(rows, PROFILES[profile])) | {
        "claims": to_markdown(claims_table(profile)),
        "claim map": to_markdown(claim_map(profile)),
        "agreement": to_markdown(agreement_table(compatible(rows, scope))),
        "free baselines": to_markdown(free_table(rows, scope)),
        "class means": free_sentence(claim_cells(rows, scope), ipc) + "\n",
        "class means, short schedule": free_sentence(cells_of_claims(SHORT), ipc) + "\n",
        "released agreement": to_markdown(agreement_table(theirs)),
        "released sets": to_markdown(released_table(rows)),
        "control": control_sentence(control(rows)),
        "stored": to_markdown(stored_table()),
        "stored sentence": stored_sentence(),
        "losses": to_markdown(loss_table(compatible(rows, scope), theirs)),
        "losses in short": losses_sentences(theirs),
        "the other half": other_half_sentence(rows, scope),
        "kd on AlexNet": kd_sentence(rows, scope),
        "schedules": schedules_text(profile),
        "distillation times": to_markdown(times_table(profile)),
        "half a cross-entropy": half_ce_sentences(rows, scope),
        "theirs on ResNet18": "On the authors' own sets "
        + half_ce_sentence(released_rows(rows), scope, "ResNet18")
        + "\n",
        "rule": "> " + RULE.replace("\n", "\n> ") + "\n",
        "error rates": to_markdown(rates_shown().round(2)),
    }


def publish_rates() -> None:
    """Simulate how often the rule errs, and write it to paper/tables."""
    measured = spreads_of_nets(committed_rows("paper"), scope_of(PROFILES["paper"]))
    write_atomic(RATES, error_rates(measured).to_csv(index=False, float_format="%.3f"))


def rates_shown() -> pd.DataFrame:
    """The committed error rates of such shapes as the verdicts at the paper's scale rest on."""
    rates = pd.read_csv(RATES)
    shown = rates["sd of nets"] == "measured"
    for n, spreads in {"1×5": [0], "1×20": [0, 0.5], "5×1": [0.5]}.items():
        shown |= (rates["n"] == n) & rates["sd of sets"].isin(spreads)
    return rates[shown]


def methods_parts(profile: str = METHODS) -> dict[str, str]:
    """Marker -> Markdown, from the committed rows of a profile that compares methods."""
    tables = methods_tables(profile)
    elf = tables["elf"]
    elf["effect"] = [effect_text(cell) if cell["n"] else "" for cell in elf.to_dict("records")]
    by_net = elf.pivot(index="comparison", columns="net", values="effect")
    by_net = by_net.reindex(index=elf["comparison"].unique(), columns=elf["net"].unique())
    return {
        "pool per method": to_markdown(tables["methods-verdicts"]),
        "pool scaled": to_markdown(pool_verdicts(pool_effects(committed_rows(SCALED)))),
        "pool scaled, by seed": to_markdown(by_seed({"none": profile, "main": SCALED})),
        "methods": to_markdown(tables["methods"]),
        "feature nets": to_markdown(pd.read_csv(TABLES / f"{profile}-feature-nets.csv").round(1)),
        "elf": to_markdown(by_net.reset_index().assign(n=elf["n"].mode().iloc[0])),
    }


def by_seed(studies: dict[str, str], net: str = "ConvNet") -> pd.DataFrame:
    """A net's mean accuracy under plain cross-entropy on DM's sets, a line per `dm_scale` (and the
    study that has it) and images, a column per seed of the sets.
    """
    parts = []
    for scale, name in studies.items():
        tested = arms(committed_rows(name))
        own = tested[(tested["net"] == net) & (tested["arm"] == "CE") & (tested["method"] == "dm")]
        cells = own.assign(seed=own["seed"].map("seed {}".format))
        means = cells.pivot_table(index="images", columns="seed", values="accuracy").round(1)
        nets = own.groupby(["images", "seed"]).size().iloc[0]
        parts.append(means.assign(dm_scale=scale, **{"nets on each": nets}).reset_index())
    return pd.concat(parts, ignore_index=True).set_index(["dm_scale", "images"]).reset_index()


def full_width_parts(rows: pd.DataFrame) -> dict[str, str]:
    """Marker -> Markdown of other methods at the paper's scale; nothing without rows."""
    if rows.empty:
        return {}
    gains = pool_effects(rows)
    return {
        "methods at full width": to_markdown(methods_table(rows)),
        "pool at full width": to_markdown(pool_verdicts(gains)),
        "pool at full width, net by net": gains_sentences(gains),
    }


def gains_sentences(effects: pd.DataFrame) -> str:
    """What the pool adds to each method under plain cross-entropy (`pool_effects`), net by net."""
    own = effects[(effects["arm"] == "CE") & (effects["net"] != "mean") & (effects["df"] > 0)]
    texts = []
    for (method, ipc, k), group in own.groupby(["method", "ipc", "iterations"], sort=False):
        cells = group.to_dict("records")
        nets = ", ".join(f"{cell['net']} {effect_text(cell)}" for cell in cells)
        n = " or ".join(dict.fromkeys(cell["n"] for cell in cells))
        where = f"ipc {ipc}, {k} iterations, plain cross-entropy{given(cells)}, n {n}"
        texts.append(
            f"{method} with the model pool − {method} with the main model ({where}): {nets}."
        )
    return " ".join(texts) + "\n"


def rows_of_methods(rows: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Rows, plain or augmented cross-entropy, of a profile's methods and of images that are given
    at the same ipc.
    """
    own = rows["method"].isin(list(profile.methods))
    beside = rows["method"].isin({*GIVEN} - {RELEASED_SETS, "full_data"})
    beside &= rows["ipc"].isin(rows.loc[own, "ipc"])
    return rows[(own | beside) & (rows["protocol"] == "ce")]


def methods_tables(profile: str = METHODS) -> dict[str, pd.DataFrame]:
    """Table name -> the table, from the committed rows of a profile that compares methods."""
    rows, nets = committed_rows(profile), PROFILES[profile].elf_nets
    gains = pool_effects(rows)
    tables = {"methods": methods_table(rows), "methods-verdicts": pool_verdicts(gains)}
    return tables | {"methods-pool": gains, "elf": elf_effects(rows, nets)}


def publish_methods(profile: str = METHODS) -> None:
    """Write `methods_tables` as CSV to paper/tables, and their figures."""
    tables, folder = methods_tables(profile), ROOT / "figures" / profile
    for name, frame in tables.items():
        write_atomic(TABLES / f"{profile}-{name}.csv", to_csv(frame))
    folder.mkdir(parents=True, exist_ok=True)
    plain = tables["methods-pool"].query("arm == 'CE'")
    drawn = {
        "methods-pool": effects(plain, "What the model pool adds, plain cross-entropy"),
        "elf": effects(tables["elf"], "ELF and its controls, DM's sets"),
    }
    for name, figure in drawn.items():
        if figure:
            figure.savefig(folder / f"{name}.png", **PNG)


def claims_table(profile: str) -> pd.DataFrame:
    """A line per claim: its verdicts under a profile, a column per ipc, and beside them those under
    the short schedule, as far as it has rows.
    """
    table = claims_by_ipc(claims_of(profile))
    if not has_rows(SHORT):
        return table
    short = claims_by_ipc(claims_of(SHORT), "short schedule, ipc ")
    return table.merge(short, on="claim", how="left")


def claims_of(profile: str) -> pd.DataFrame:
    """The verdicts (`audit.claims`) by a profile's committed rows."""
    return claims(cells_of_claims(profile))


def cells_of_claims(profile: str) -> pd.DataFrame:
    """What those verdicts rest on (`audit.claim_cells`)."""
    return claim_cells(committed_rows(profile), scope_of(PROFILES[profile]))


def claims_by_ipc(found: pd.DataFrame, column: str = "ipc ") -> pd.DataFrame:
    """A line per claim, a column per ipc: the verdict with how many of its cells are measured."""
    cells = found["verdict"] + " (" + found["measured"] + ")"
    columns = {"claim": found["claim"], "ipc": column + found["ipc"].astype(str), "cell": cells}
    table = pd.DataFrame(columns).pivot(index="claim", columns="ipc", values="cell")
    order = [column + str(ipc) for ipc in found["ipc"].unique()]
    return table.reindex(index=found["claim"].unique(), columns=order).reset_index()


def claim_map(profile: str) -> pd.DataFrame:
    """A line per verdict that has rows: claim, command, expected; then the commands that make the
    rows, with the hours that the committed ones took.
    """
    lines = []
    for name in (profile, SHORT):
        found = claims_of(name) if has_rows(name) else pd.DataFrame()
        for one in found.to_dict("records"):
            if one["n"]:
                verdict = f"{one['verdict']} ({one['measured']}; n {one['n']})"
                claim = f"{one['claim']}, ipc {one['ipc']}, `{name}`"
                table = f"[claim {one['number']}](../paper/tables/{name}-claims.csv)"
                lines.append((claim, "`make tables`", f"{table}: {verdict}"))
    commands = {
        profile: "`make paper BUDGET=8m STORE=DIR`, again and again",
        SHORT: f"`.venv/bin/python -m ddlib work --profile {SHORT}`",
        METHODS: f"`make reproduce PROFILE={METHODS}`",
    }
    lines += [
        (f"The rows of `{name}`", command, rows_text(name))
        for name, command in commands.items()
        if has_rows(name)
    ]
    return pd.DataFrame(lines, columns=["claim", "command", "expected"])


def rows_text(name: str) -> str:
    """How many of a profile's planned sets and nets are committed, and how long they took."""
    folder, tasks = ROOT / "paper" / "results" / name, plan(PROFILES[name])
    sets, rows = (pd.read_csv(folder / f"{table}.csv") for table in ("sets", "rows"))
    names = ["method", "pool", "ipc", "seed"]
    reached = sets[~sets["method"].isin(GIVEN)].groupby(names)["iteration"].max()
    planned = [task for task in tasks if isinstance(task, ImageSet)]
    ends = {tuple(getattr(t, name) for name in names): t.iteration for t in planned}  # last ones
    short = sum(k < ends.get(key, 0) for key, k in reached.items())
    unfinished = f", {short} of them not to the last iteration" if short else ""
    hours = [table["seconds"].sum() / 3600 for table in (sets, rows)]
    return (
        f"[its rows](../paper/results/{name}/rows.csv): {len(reached)} of "
        f"{len({replace(task, iteration=0) for task in planned})} planned sets{unfinished}"
        f" ({hours[0]:.1f} hours), {committed_rows(name)['training'].nunique():,} trained nets "
        f"({hours[1]:.1f} hours)"
    )


def schedule_table(profile: str) -> pd.DataFrame:
    """What the short schedule's sets give beside a profile's, plain cross-entropy
    (`schedules.compare_schedules`).
    """
    if not has_rows(SHORT):
        return pd.DataFrame()
    names = SHORT, profile
    ends = tuple(PROFILES[name].reported[0] for name in names)
    rows = [committed_rows(name) for name in names]
    found = compare_schedules(*rows, PROFILES[SHORT].ipcs[0], ends, PROFILES[SHORT].nets)
    found["short − paper"] = [effect_text(cell) for cell in found.to_dict("records")]
    found[["short", "paper"]] = found[["short", "paper"]].map("{:.1f}".format)
    columns = ["images", "net", "short", "n short", "paper", "n paper", "short − paper", "judged"]
    return found[[*columns, "low", "high"]]


def schedules_text(profile: str) -> str:
    """`schedule_table`, or that there is none; and whether it could have shown equivalence."""
    table = schedule_table(profile)
    if not len(table):
        return "Not measured yet.\n"
    narrowest = ((table.pop("high") - table.pop("low")) / 2).min()
    could = "" if narrowest <= MARGIN else f"{NO_POWER.format(narrowest)}\n\n"
    return could + to_markdown(table)


def times_table(profile: str) -> pd.DataFrame:
    """`schedules.distillation_times` of the benchmark, by a profile's schedule and the short one.

    To the first reported iteration, which the tables show.
    """
    names = {"paper": profile, "short": SHORT}
    schedules = {name: PROFILES[other].reported[0] for name, other in names.items()}
    return distillation_times(json.loads(BENCHMARK.read_text()), schedules)


def committed_rows(profile: str) -> pd.DataFrame:
    """The committed rows of a profile."""
    return read_results(ROOT / "paper" / "results" / profile)


def has_rows(profile: str) -> bool:
    """Whether rows of a profile are committed."""
    return (ROOT / "paper" / "results" / profile / "rows.csv").is_file()


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
        sentences.append(
            f"At ipc {ipc} half a cross-entropy agrees, on {THEIR_SETS}, with {half[0]} figures "
            f"printed without KD and {half[1]} printed with it, a whole one with {whole[0]} and "
            f"{whole[1]}; they differ on {', '.join(differ) or 'no net'}."
        )
    return " ".join(sentences) + "\n"


def other_half_sentence(rows: pd.DataFrame, scope: Scope) -> str:
    """Where the gain of a whole over half a cross-entropy on the authors' sets is not what Table 4
    prints as KD's.
    """
    lines = audit(released_rows(rows), scope)
    ours = lines[(lines["point"] == "half-ce") & (lines["ipc"] == scope.ipcs[0])]
    judged = ours[ours["agrees"] != ""]
    wrong = [
        f"{one['net']}, {one['comparison'].rpartition(', ')[2]} ({effect_text(one)}; printed "
        f"{signed(one['published'])})"
        for one in judged[judged["agrees"] == "no"].to_dict("records")
    ]
    where = f"at ipc {scope.ipcs[0]} in {len(judged) - len(wrong)} of {len(judged)} cells"
    but = f"; not on {', '.join(wrong)}" if wrong else ""
    return (
        "On these sets the gain of a whole over half a cross-entropy agrees with the printed gain "
        f"of KD {where}{but}.\n"
    )


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


def agreeing(cells: pd.DataFrame) -> str:
    """How many lines of `audit.compatible` agree, and the nets of those that do not."""
    if cells.empty:
        return NOT_MEASURED
    other = in_order(set(cells.loc[cells["agrees"] == "no", "net"]))
    but = f"; not {', '.join(other)}" if other else ""
    return f"{sum(cells['agrees'] != 'no')} of {len(cells)}{but}"


def free_cells(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """Images that cost nothing, then distilled ones, plain cross-entropy, at the first ipc and
    iteration: `stats.summarise` by images and net.
    """
    tested, (ipc, at) = arms(rows), (scope.ipcs[0], scope.iterations[0])
    names = {**dict.fromkeys(FREE, 0), **dict.fromkeys(SETS, at)}
    parts = [pick(tested, images, "CE", ipc, iteration) for images, iteration in names.items()]
    cells = summarise(pd.concat(parts), ["images", "net"])
    return cells[cells["net"].isin(scope.nets)].sort_values(
        "images", key=lambda images: images.map([*names].index), kind="stable", ignore_index=True
    )


def printed_best(scope: Scope) -> dict[str, float]:
    """Net -> what Table 4 prints for its best method, at the first ipc and iteration."""
    place = scope.ipcs[0], scope.iterations[0], BEST
    return {net: printed_accuracy(read_published(4), *place, net) for net in scope.nets}


def free_table(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """`free_cells` as a table, a column per net; last what Table 4 prints for its best method."""
    lines = []
    for images, own in free_cells(rows, scope).groupby("images", sort=False):
        cells = {cell["net"]: cell for cell in own.to_dict("records")}
        usual = own["n"].mode().iloc[0]
        texts = {net: cell_text(cells.get(net), usual) for net in scope.nets}
        lines.append({"images": images, "n": usual} | texts)
    printed = printed_best(scope).items()
    texts = {net: "" if pd.isna(value) else f"{value:.1f}" for net, value in printed}
    return pd.DataFrame([*lines, {"images": f"printed: {BEST}", "n": "1×10"} | texts])


def publish_headline(profile: str = "paper") -> None:
    """Draw `free_cells` of a profile's committed rows to figures."""
    rows, scope = committed_rows(profile), scope_of(PROFILES[profile])
    size = f"CIFAR-10, {scope.ipcs[0]} image per class, plain cross-entropy"
    title = f"{size}: free images (squares) and distilled ones"
    figure = dots(free_cells(rows, scope), title, printed_best(scope), f"printed: {BEST}")
    figure.savefig(ROOT / "figures" / profile / "headline.png", **PNG)


def free_sentence(cells: pd.DataFrame, ipc: int) -> str:
    """On which nets class means beat distilled images, and where distilled images beat both kinds
    of means: the cells of `audit.claim_cells`, with Holm's correction for their number.
    """
    own = cells[(cells["claim"] == CLASS_MEANS) & (cells["ipc"] == ipc) & (cells["net"] != "mean")]
    own = own[own["n"] != ""]
    if own.empty:
        return "Class means: not measured yet."
    free, found = own["comparison"].str.partition(" − ")[2], own.to_dict("records")
    loses, gains = (
        pd.Series(holm([p(cell) for cell in found], SIDE), own.index) for p in (p_below, p_above)
    )
    lost = loses.groupby([own["net"], free]).all().reset_index()
    kinds = lost[lost[0]].groupby("net")[free.name].agg(" and ".join)
    won = gains.groupby(own["net"]).all()
    ahead = ", ".join(f"{net} ({kinds[net]})" for net in in_order(kinds.index)) or "no net"
    behind = ", ".join(in_order(won[won].index)) or "no net"
    measured = f"{len(won)} nets measured{given(found)}"
    return (
        f"Class means beat both distilled sets on {ahead}; both distilled sets beat both kinds of "
        f"class means on {behind} ({measured}; Holm's correction over all differences)."
    )


def kd_sentence(rows: pd.DataFrame, scope: Scope) -> str:
    """How many AlexNets never learn under each way of training, and what claim 3 is without that
    net.
    """
    ipc, tested, counts = scope.ipcs[0], arms(rows), []
    own = tested[(tested["net"] == "AlexNet") & (tested["ipc"] == ipc)]
    own = own[(own["iteration"] == scope.iterations[0]) & own["images"].isin(SETS)]
    for arm in ("KD", "CE", "KD, lr chosen", "CE, lr chosen"):
        accuracies = own.loc[own["arm"] == arm, "accuracy"]
        counts.append(f"{(accuracies == CHANCE).sum()} of {len(accuracies)} under {arm}")
    others = replace(scope, nets=tuple(net for net in scope.nets if net != "AlexNet"))
    found = claims(claim_cells(rows, others)).query("number == 3 and ipc == @ipc").iloc[0]
    return (
        f"Nets of AlexNet that stay at {CHANCE:g}%: {', '.join(counts)}. Without AlexNet claim 3 "
        f"is *{found['verdict']}* ({found['measured']}): {found['evidence']}\n"
    )


def half_ce_sentences(rows: pd.DataFrame, scope: Scope) -> str:
    """`half_ce_sentence` of the nets that tell a whole and half a cross-entropy apart most."""
    sentences = [half_ce_sentence(rows, scope, net) for net in ("ResNet18", "AlexNet")]
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def half_ce_sentence(rows: pd.DataFrame, scope: Scope, net: str) -> str:
    """What a net reaches on the same images with a whole and half a cross-entropy, beside what
    Table 4 prints for it.
    """
    tested, table4, texts = arms(rows), read_published(4), []
    ipc, iteration = scope.ipcs[0], scope.iterations[0]
    for images, (with_kd, without) in SETS.items():
        own = tested[(tested["images"] == images) & (tested["net"] == net) & (tested["ipc"] == ipc)]
        means = own[own["iteration"] == iteration].groupby("arm")["accuracy"].mean()
        printed = [printed_accuracy(table4, ipc, iteration, m, net) for m in (without, with_kd)]
        if {"CE", "½ CE"} <= set(means.index):
            dead = (own["accuracy"] == CHANCE) & (own["iteration"] == iteration)
            half, whole = (
                f"{means[arm]:.1f}%{at_chance(dead[own['arm'] == arm])}" for arm in ("½ CE", "CE")
            )
            texts.append(
                f"on {images} images {half} with half a cross-entropy and {whole} with a whole one "
                f"(printed: {printed[0]:.1f}% without KD, {printed[1]:.1f}% with it)"
            )
    where = f"{net} reaches, at ipc {ipc}, without any teacher, "
    return where + "; ".join(texts) + "." if texts else ""


def at_chance(dead: pd.Series) -> str:
    """How many nets never learned, "" if none."""
    return f" ({dead.sum()} nets stay at {CHANCE:g}%)" if dead.any() else ""


def choice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What was chosen on validation images, from which candidates, and whether at their edge."""
    known = comparable(rows)
    parts = [choices(at_usual_lr(known), "kd", "tau"), choices(known, "ce", "lr")]
    after = choices(known[at_chosen_lr(known, known)], "kd", "tau")
    parts.append(after.assign(setting="tau at the chosen lr"))
    parts = [part for part in parts if len(part)] or parts[:1]
    found = pd.concat(parts, ignore_index=True)
    keys = zip(found["method"], found["pool"], strict=True)
    found["images"] = [images_name(method, "", pool) for method, pool in keys]
    return found.assign(chosen=found["chosen"].map("{:g}".format))
