"""README's numbers: every table and sentence with a number in it is written by file, between
markers.
"""

import json
from dataclasses import replace
from functools import cache

import pandas as pd

from ..results import read_results
from ..study.given import GIVEN
from ..study.plan import ImageSet, plan
from ..study.profiles import PROFILES, Profile
from ..study.released import METHOD as RELEASED_SETS
from ..study.study import PNG
from ..support.store import ROOT, fill, write_atomic
from ..synset import SyntheticSet
from .audit import (
    MARGIN,
    RULE,
    Scope,
    audit,
    claim_cells,
    claims,
    compatible,
    effect_text,
    error_rates,
    sentence,
    spreads_of_nets,
)
from .figures import dots, effects, member_losses
from .methods import (
    elf_effects,
    extent_table,
    gains_by_seed,
    methods_table,
    pool_effects,
    pool_verdicts,
)
from .released import control, released_compatible, released_rows, released_table
from .schedules import compare_schedules, distillation_times
from .selection import WITH_POOL, arms, choice_table
from .sentences import (
    BEST,
    NOT_MEASURED,
    agreement_table,
    claims_by_ipc,
    control_sentence,
    free_cells,
    free_sentence,
    free_table,
    half_ce_by_ipc,
    half_ce_sentences,
    kd_sentence,
    large_gains_sentence,
    loss_table,
    losses_sentences,
    mean_gains_sentence,
    other_half_sentence,
    other_pools_sentence,
    printed_best,
    settings_table,
    stored_sentence,
    stored_table,
)
from .tables import (
    caption,
    table,
    to_latex,
    to_markdown,
    wide,
)

TABLES = ROOT / "paper" / "tables"
RATES = TABLES / "verdict-rates.csv"
BENCHMARK = ROOT / "benchmarks" / "results" / "amd-epyc-2-threads.json"
SHORT = "paper-fast"  # the profile with a shorter schedule
NO_POWER = (
    "The narrowest interval is ±{:.1f} points: with so few sets none could have shown equivalence, "
    "whatever the truth is."
)
METHODS = "methods-small"  # the profile that compares methods, whose rows are committed
# DM in a pool with BatchNorm's statistics frozen, as it was first run: at a laptop's scale, there
# with gradients scaled to the main model's, and at the paper's scale
FROZEN, SCALED, FROZEN_PAPER = f"{METHODS}-frozen", f"{METHODS}-dm-scale", "paper-dm-frozen"
STATISTICS = {"of the batch": METHODS, "frozen": FROZEN, "frozen, dm_scale main": SCALED}
COMMITTED_SETS = ROOT / "paper" / "sets"


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
        files[f"table{number}.tex"] = to_latex(layout, text.partition("** ")[2])
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
        fill(path, parts)


def docs_parts(profile: str) -> dict[str, str]:
    """Marker -> Markdown, from the committed rows of a profile and the simulated error rates."""
    rows, scope = committed_rows(profile), scope_of(PROFILES[profile])
    theirs, ipc = released_compatible(rows, scope), scope.ipcs[0]
    methods = rows_of_methods(rows, PROFILES[profile])
    return full_width_parts(methods, committed_rows(FROZEN_PAPER)) | {
        "claims": claims_text(profile),
        "claim map": to_markdown(claim_map(profile)),
        "agreement": to_markdown(agreement_table(compatible(rows, scope))),
        "free baselines": to_markdown(free_table(rows, scope)),
        "class means": free_sentence(cells_of_claims(profile), ipc) + "\n",
        "class means, short schedule": free_sentence(cells_of_claims(SHORT), ipc) + "\n",
        "released agreement": to_markdown(agreement_table(theirs)),
        "released sets": to_markdown(released_table(rows)),
        "control": control_sentence(control(rows)),
        "stored": to_markdown(stored_table()),
        "stored sentence": stored_sentence(),
        "losses": to_markdown(loss_table(compatible(rows, scope), theirs)),
        "losses in short": losses_sentences(theirs),
        "large gains": large_gains_sentence(rows, scope),
        "the other half": other_half_sentence(rows, scope),
        "kd on AlexNet": kd_sentence(rows, scope),
        "other pools": other_pools_sentence(committed_rows(SHORT), scope_of(PROFILES[SHORT]), rows),
        "schedules": schedules_text(profile),
        "distillation times": to_markdown(times_table(profile)),
        "half a cross-entropy": half_ce_sentences(rows, scope),
        "half a cross-entropy, short schedule": on_sets("half-ce"),
        "chosen rate, short schedule": on_sets("lr"),
        "theirs, by net": half_ce_by_ipc(released_rows(rows), scope),
        "rule": "> " + RULE.replace("\n", "\n> ") + "\n",
        "error rates": to_markdown(rates_shown().round(2)),
    }


def on_sets(point: str) -> str:
    """What a point of the audit says under the short schedule: with intervals over sets."""
    lines = audit(committed_rows(SHORT), scope_of(PROFILES[SHORT]))
    return sentence(lines[(lines["point"] == point) & (lines["net"] != "ConvNet")]) + "\n"


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
        "pool per method, in short": mean_gains_sentence(tables["methods-verdicts"]),
        "batch norm, by seed": to_markdown(by_seed(STATISTICS)),
        "methods settings": to_markdown(settings_table(PROFILES[profile])),
        "methods": to_markdown(tables["methods"]),
        "feature nets": to_markdown(pd.read_csv(TABLES / f"{profile}-feature-nets.csv").round(1)),
        "elf": to_markdown(by_net.reset_index().assign(n=elf["n"].mode().iloc[0])),
    }


def by_seed(studies: dict[str, str], net: str = "ConvNet") -> pd.DataFrame:
    """A net's mean accuracy under plain cross-entropy on DM's sets, a line per images and study, by
    what BatchNorm's statistics are there; a column per seed of the sets.
    """
    parts = []
    for how, name in studies.items():
        tested = arms(committed_rows(name))
        own = tested[(tested["net"] == net) & (tested["arm"] == "CE") & (tested["method"] == "dm")]
        if parts:  # the main model has no batch norm
            own = own[own["pool"] != "main"]
        cells = own.assign(seed=own["seed"].map("seed {}".format))
        means = cells.pivot_table(index="images", columns="seed", values="accuracy").round(1)
        sizes = own.groupby(["images", "seed"]).size().groupby("images").unique()
        ns = ["-".join(map(str, sorted(found))) for found in sizes]
        statistics = [how if name.endswith(WITH_POOL) else "" for name in means.index]
        parts.append(means.assign(**{"batch norm": statistics, "nets on each": ns}).reset_index())
    return pd.concat(parts, ignore_index=True).set_index(["images", "batch norm"]).reset_index()


def full_width_parts(rows: pd.DataFrame, frozen: pd.DataFrame) -> dict[str, str]:
    """Marker -> Markdown of other methods at the paper's scale; nothing without rows.

    `frozen`: of DM with the pool and BatchNorm's statistics frozen (the main model has none).
    """
    if rows.empty:
        return {}
    verdicts = pool_verdicts(pool_effects(rows))
    beside = pd.concat([rows[rows["pool"] == "main"], frozen], ignore_index=True)
    return {
        "methods at full width": to_markdown(methods_table(rows).fillna("")),
        "pool at full width": to_markdown(verdicts),
        "pool at full width, in short": mean_gains_sentence(verdicts),
        "pool at full width, seed by seed": to_markdown(gains_by_seed(rows)),
        "frozen at full width, seed by seed": to_markdown(gains_by_seed(beside)),
        "pixels at full width": to_markdown(extent_table(dm_sets())),
    }


def dm_sets() -> list[SyntheticSet]:
    """The committed sets of DM at the paper's scale."""
    return [
        SyntheticSet.load(path) for path in sorted(COMMITTED_SETS.glob("paper-dm-*.safetensors"))
    ]


def publish_losses() -> None:
    """Draw what each member of the pool had to match in DM at the paper's scale, with frozen
    statistics and with those of the batch, from the committed logs.
    """
    logs = {}
    for how, name in {"frozen": FROZEN_PAPER, "of the batch": "paper-dm"}.items():
        for path in sorted(COMMITTED_SETS.glob(f"{name}-ipc10-*.log.csv")):
            seed = path.name.split("-s")[-1].split(".")[0]
            logs[f"statistics {how}, seed {seed}"] = pd.read_csv(path)
    figure = member_losses(logs, "DM with the model pool, CIFAR-10, ipc 10, full width")
    figure.savefig(ROOT / "figures" / "paper" / "dm-pool-losses.png", **PNG)


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
        "methods-pool": effects(plain, "What the model pool adds, CIFAR-10, slim nets, plain CE"),
        "elf": effects(tables["elf"], "ELF and its controls, CIFAR-10, slim nets, DM's sets"),
    }
    for name, figure in drawn.items():
        if figure:
            figure.savefig(folder / f"{name}.png", **PNG)


def claims_text(profile: str) -> str:
    """A table of the claims and their verdicts under a profile, a column per ipc that has rows, and
    under the short schedule; then which ipcs have none.
    """
    names = {name: "" if name == profile else "short schedule, " for name in (profile, SHORT)}
    parts = [claims_by_ipc(claims_of(name), names[name]) for name in names if has_rows(name)]
    table = pd.concat(parts, axis=1).fillna(NOT_MEASURED)
    missing = [ipc for ipc in scope_of(PROFILES[profile]).ipcs if f"ipc {ipc}" not in table]
    note = f"\nOf these claims nothing is measured at ipc {', '.join(map(str, missing))}.\n"
    return to_markdown(table.reset_index()) + note * bool(missing)


def claims_of(profile: str) -> pd.DataFrame:
    """The verdicts (`audit.claims`) by a profile's committed rows."""
    return claims(cells_of_claims(profile))


@cache
def cells_of_claims(profile: str) -> pd.DataFrame:
    """What those verdicts rest on (`audit.claim_cells`)."""
    return claim_cells(committed_rows(profile), scope_of(PROFILES[profile]))


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
    last = sets.sort_values("iteration").drop_duplicates([*names, "settings"], keep="last")
    hours = [table["seconds"].sum() / 3600 for table in (last, rows)]  # of a set: since it began
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


@cache  # of files that are read and checked a dozen times otherwise; nobody changes the frame
def committed_rows(profile: str) -> pd.DataFrame:
    """The committed rows of a profile."""
    return read_results(ROOT / "paper" / "results" / profile)


def has_rows(profile: str) -> bool:
    """Whether rows of a profile are committed."""
    return (ROOT / "paper" / "results" / profile / "rows.csv").is_file()


def publish_headline(profile: str = "paper") -> None:
    """Draw `free_cells` of a profile's committed rows to figures."""
    rows, scope = committed_rows(profile), scope_of(PROFILES[profile])
    size = f"CIFAR-10, {scope.ipcs[0]} image per class, plain cross-entropy"
    title = f"{size}: free images (squares) and distilled ones"
    figure = dots(free_cells(rows, scope), title, printed_best(scope), f"printed: {BEST}")
    figure.savefig(ROOT / "figures" / profile / "headline.png", **PNG)
