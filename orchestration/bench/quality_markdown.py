"""Markdown tables from the documents of the quality benchmark, its tuning and its ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from orchestration.bench.quality_tune import told_config

Document = dict[str, Any]
_OF_METHODS: Final[dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "judged": ("What the judge expects, over the reference", lambda m: f"{m['judged']:.3f}"),
    "believed": ("What the evaluator that taught it expects, over the reference", lambda m: f"{m['believed']:.3f}"),
    "hit_rate_1_percent": ("HR@1 %: share of requests whose list is among the best 1 %", lambda m: _share(m, 1)),
    "hit_rate_10_percent": ("HR@10 %: share of requests whose list is among the best 10 %", lambda m: _share(m, 10)),
    "evaluator_calls": ("Evaluator calls while learning", lambda m: _count(m["evaluator_calls"])),
    "train_seconds": (
        "Seconds of learning, one thread, the evaluator's own left out",
        lambda m: f"{m['train_seconds']:.0f}",
    ),
    "logged_ndcg": ("NDCG on logged clicks: a sanity check only", lambda m: f"{m['logged_ndcg']:.3f}"),
}
_OF_WORLDS: Final[dict[str, Callable[[Document], Any]]] = {
    "seeds": lambda d: len(d["seeds"]),
    "clicks of the reference": lambda d: d["reference_clicks"],
    "beam with the true prefix value, over the reference": lambda d: d["true_beam"]["mean"],
    "planning recovery": lambda d: d["recovery"],
    "optimism of the beam": lambda d: d["optimism"],
    "judge agrees, share of telling pairs": lambda d: d["judge_agreement"]["share"],
    "telling pairs": lambda d: d["judge_agreement"]["pairs"],
    "evaluator: Spearman over random lists": lambda d: d["evaluator"]["spearman"],
    "evaluator: RMSE / sd of all random lists": lambda d: d["evaluator"]["rmse_over_sd"],
    "evaluator: RMSE / sd within a request": lambda d: d["evaluator"]["rmse_over_sd_within"],
    "evaluator: calibration error, logged": lambda d: d["evaluator"]["ece_logged"],
    "evaluator: calibration error, random": lambda d: d["evaluator"]["ece_random"],
    "evaluator: calibration error, logged, after isotonic calibration": lambda d: d["evaluator"]["detail"][
        "ece_logged_calibrated"
    ],
    "evaluator: calibration error, random, after isotonic calibration": lambda d: d["evaluator"]["detail"][
        "ece_random_calibrated"
    ],
    "evaluator: seconds": lambda d: round(d["evaluator"]["train_seconds"]),
}


def tables(documents: Sequence[Document]) -> list[str]:
    """Markdown of one size's documents: worlds as columns."""
    worlds = [document["world"] for document in documents]
    size, first = documents[0]["size"], documents[0]
    names = ranked(documents)
    values = [[_label(name, documents), *(_value(document, name) for document in documents)] for name in names]
    about = (
        f"{first['logged_requests']:,} logged and {first['mined_requests']:,} mined requests, {first['test_requests']:,} fresh "
        f"test requests a seed, reference: {first['reference']}. Half the width of the 95 % interval is behind the ±."
    )
    out = [
        "True value over the reference. " + about,
        _table(["method", *worlds], values),
        f"![True value by world and method](images/results-{size}.svg)",
    ]
    for key, (title, cell) in _OF_METHODS.items():
        held = [name for name in names if any(key in d["methods"].get(name, {}) for d in documents)]
        if held:
            rows = [[_label(n, documents), *(_of(d, n, key, cell) for d in documents)] for n in held]
            out += [f"{title}:", _table(["method", *worlds], rows)]
    rows = [[name, *(_number(read(document)) for document in documents)] for name, read in _OF_WORLDS.items()]
    out += ["What the figures stand on:", _table(["", *worlds], rows)]
    groups = [d["evaluator"]["detail"]["by_edit_distance"] for d in documents]
    rows = [[f"{of[0]['of']:.0f}", *(f"{g['rmse']:.3f}" for g in of)] for of in zip(*groups, strict=True)]
    title = "Evaluator's root mean squared error in clicks, by how many slots differ from the logged list:"
    return [*out, title, _table(["slots that differ", *worlds], rows)]


def ranked(documents: Sequence[Document]) -> list[str]:
    """Every method of the documents, best mean first, those that search while answering last."""

    def order(name: str) -> tuple[bool, float]:
        of = [d["methods"][name] for d in documents if name in d["methods"]]
        return of[0]["teacher"], -sum(m["mean"] for m in of) / len(of)

    return sorted({name for document in documents for name in document["methods"]}, key=order)


def curve_tables(document: Document) -> list[str]:
    """Markdown of a quality.json with several shares of the calls: the plot, and each method's value at every share."""
    curves, methods = document["curves"], document["methods"]
    shares = sorted({point["share"] for of in curves.values() for point in of})
    about = (
        f"{document['size'].capitalize()} {document['world']}, seeds {document['seeds']}: every method spends at most the share "
        f"of the evaluator calls that mining {document['mined_requests']:,} requests takes; value over the reference."
    )
    rows = []
    for name in sorted((n for n in curves if not methods[n]["teacher"]), key=lambda n: -methods[n]["mean"]):
        m, values = methods[name], {point["share"]: point["mean"] for point in curves[name]}
        less = m["minus_degre"]
        half = (less["interval"][1] - less["interval"][0]) / 2
        cells = [f"{values[s]:.3f}" if s in values else "–" for s in shares]
        cells += ["–" if name == "degre" else f"{less['mean']:+.3f} ± {half:.3f}"]
        rows.append([_label(name, [document]), *cells, _count(m["evaluator_calls"]), f"{m['train_seconds']:.0f}"])
    head = ["method", *(f"{share:g} of the calls" for share in shares), "less `degre` at the most", "calls", "seconds"]
    name = f"{document['size']}-{document['world']}"
    return [about, f"![Value against calls and seconds, {name}](images/curves-{name}.svg)", _table(head, rows)]


def trivago_tables(document: Document) -> list[str]:
    """Markdown of a trivago.json."""
    less = document["generator_minus_lambdarank"]
    about = (
        f"MRR of {document['clicks']:,} clicks of the last day by {document['users']:,} users, seeds {document['seeds']}, the same "
        f"features for all; 95 % intervals from a bootstrap by user. `degre` less `lambdarank`: {less['mean']:+.4f} "
        f"({_range(less['interval'], 4)}; by seed {', '.join(f'{value:+.4f}' for value in less['by_seed'])}). "
        "The clicks are biased by the shown position: no claim about lookahead is made from them."
    )
    rows = [
        [
            f"**`{n}`**" if n == "degre" else f"`{n}`",
            f"{m['mrr']:.4f}",
            _range(m["interval"], 4),
            f"{m['mrr_not_first']:.4f}",
        ]
        for n, m in sorted(document["methods"].items(), key=lambda item: -item[1]["mrr"])
    ]
    return [about, _table(["method", "MRR", "95 %", "MRR of clicks not at rank 1"], rows)]


def tuning_table(document: Document) -> list[str]:
    """Markdown of a tune.json: what the judge made of every configuration."""
    about = (
        f"{document['size']} {document['world']}, seeds {document['seeds']}, {document['validation_requests']:,} validation "
        f"requests a seed, {document['share_of_the_calls']:g} of the calls: clicks a list that the judge expects (upstream "
        f"order {document['judged_upstream_order']:.3f}); the chosen configuration in bold."
    )
    rows = []
    for method, trials in document["trials"].items():
        for number, trial in enumerate(trials):
            mark = "**" if document["chosen"][method] == number else ""
            cells = [f"`{method}`", told_config(trial["config"]), f"{mark}{trial['judged']:.4f}{mark}"]
            rows.append([*cells, _count(trial["evaluator_calls"]), f"{trial['train_seconds']:.0f}"])
    return [about, _table(["method", "configuration", "judged", "calls", "seconds"], rows)]


def ablation_tables(document: Document) -> list[str]:
    """Markdown of an ablations.json: one row a change, then the transfer to other shapes of request."""
    about = (
        f"{document['size']} {document['world']}, seeds {document['seeds']}, {document['logged_requests']:,} logged and "
        f"{document['mined_requests']:,} mined requests. Seconds include the evaluator's."
    )
    rows = [["", "as usual", *_ablation(document["usual"])]]
    rows += [[g, name, *_ablation(row)] for g, of in document["groups"].items() for name, row in of.items()]
    head = ["group", "change", "true value", "less usual", "judged", "believed", "calls", "seconds"]
    out = [about, _table(head, rows)]
    if document["transfer"]:
        methods = list(next(iter(document["transfer"].values())))
        shapes = [[name, *(f"{of[m]:.3f}" for m in methods)] for name, of in document["transfer"].items()]
        out += ["Trained at the usual shape of request, asked at another (over that shape's own reference):"]
        out += [_table(["requests", *methods], shapes)]
    return out


def _ablation(row: dict[str, Any]) -> list[str]:
    less = row["minus_usual"]
    half, half_less = ((x["interval"][1] - x["interval"][0]) / 2 for x in (row, less))
    cells = [f"{row['mean']:.3f} ± {half:.3f}", f"{less['mean']:+.3f} ± {half_less:.3f}"]
    cells += [f"{row['judged']:.3f}", f"{row['believed']:.3f}"]
    return [*cells, _count(row["evaluator_calls"]), f"{row['seconds']:.0f}"]


def _label(name: str, documents: Sequence[Document]) -> str:
    teacher = any(d["methods"][name]["teacher"] for d in documents if name in d["methods"])
    label = f"`{name}`" + (" (searches while answering)" if teacher else "")
    return f"**{label}**" if name == "degre" else label


def _value(document: Document, name: str) -> str:
    m = document["methods"].get(name)
    return "–" if m is None else f"{m['mean']:.3f} ± {(m['interval'][1] - m['interval'][0]) / 2:.3f}"


def _of(document: Document, name: str, key: str, cell: Callable[[dict[str, Any]], str]) -> str:
    m = document["methods"].get(name)
    return "–" if m is None or m.get(key) is None else cell(m)


def _share(method: dict[str, Any], percent: int) -> str:
    return f"{100 * method[f'hit_rate_{percent}_percent']:.1f} %"


def _count(calls: float) -> str:
    if calls == 0:
        return "–"
    return f"{calls / 1e6:.2f} M" if calls >= 1e5 else f"{calls:,.0f}"


def _range(interval: Sequence[float], digits: int) -> str:
    return f"{interval[0]:.{digits}f} … {interval[1]:.{digits}f}"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
