"""README's numbers: every table and sentence with a number in it is written by file, between
markers.
"""

import pandas as pd

from ..results import read_results
from ..store import ROOT, write_atomic
from ..study.profiles import PROFILES
from .audit import SETS, Scope, claims, compatible
from .published import printed_accuracy
from .selection import arms, choices, comparable
from .tables import NETS, in_order, read_published, to_markdown


def update_readme(profile: str = "paper") -> None:
    """Write the parts of README.md that come from rows between their markers."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, content in readme_parts(profile).items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        tail = rest.partition(f"<!-- end {name} -->")[2]
        text = f"{head}<!-- {name} -->\n{content}<!-- end {name} -->{tail}"
    write_atomic(readme, text)


def readme_parts(profile: str) -> dict[str, str]:
    """Marker -> Markdown, from the committed rows of a profile."""
    rows = read_results(ROOT / "paper" / "results" / profile)
    setting = PROFILES[profile]
    scope = Scope(setting.ipcs, setting.reported, setting.nets)
    return {
        "claims": to_markdown(claims_by_ipc(claims(rows, scope))),
        "agreement": to_markdown(agreement_table(compatible(rows, scope))),
        "half a cross-entropy": half_ce_sentences(rows, scope),
    }


def claims_by_ipc(found: pd.DataFrame) -> pd.DataFrame:
    """A line per claim, a column per ipc: the verdict with how many of its cells are measured."""
    cells = found["verdict"] + " (" + found["measured"] + ")"
    columns = {"claim": found["claim"], "ipc": "ipc " + found["ipc"].astype(str), "cell": cells}
    table = pd.DataFrame(columns).pivot(index="claim", columns="ipc", values="cell")
    order = ["ipc " + str(ipc) for ipc in found["ipc"].unique()]
    return table.reindex(index=found["claim"].unique(), columns=order).reset_index()


def agreement_table(found: pd.DataFrame) -> pd.DataFrame:
    """A line per printed row of Table 4, a column per way of training: with how many nets it
    agrees, and with which not.
    """
    lines = []
    for (ipc, printed), group in found.groupby(["ipc", "printed"], sort=False):
        line = {"ipc": ipc, "printed row": printed}
        for arm, cells in group.groupby("arm", sort=False):
            other = in_order(cells.loc[cells["agrees"] == "no", "net"])
            agreeing = f"{len(cells) - len(other)} of {len(cells)}"
            line[arm] = agreeing + (f"; not {', '.join(other)}" if other else "")
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def half_ce_sentences(rows: pd.DataFrame, scope: Scope, net: str = "ResNet18") -> str:
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
            texts.append(
                f"on {images} images {means['½ CE']:.1f}% with half a cross-entropy and "
                f"{means['CE']:.1f}% with a whole one, "
                f"both without a teacher (Table 4 prints {printed[0]:.1f}% without KD and "
                f"{printed[1]:.1f}% with it)"
            )
    return f"{net} reaches, at ipc {ipc}, {'; '.join(texts)}.\n" if texts else "Not measured yet.\n"


def choice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What was chosen on validation images, temperatures and learning rates, with the candidates
    and whether at their edge.
    """
    known = comparable(rows)
    parts = [choices(known, "kd", "tau"), choices(known, "ce", "lr")]
    found = pd.concat(parts, ignore_index=True)
    found["at_edge"] = found["at_edge"].map({True: "yes", False: ""})
    place = {net: i for i, net in enumerate(NETS)}
    return found.sort_values(
        ["ipc", "setting", "pool", "net"],
        key=lambda c: c.map(place).fillna(0) if c.name == "net" else c,
    )
