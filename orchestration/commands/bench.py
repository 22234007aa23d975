"""`degre bench …`: measurements. Each prints one JSON document as its last line with `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure decode, features, serving, quality.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document last")]
Candidates = Annotated[int, typer.Option(help="candidates a request", min=1)]
Length = Annotated[int, typer.Option(help="items a list", min=1)]


@app.command()
def decode(
    candidates: Candidates = 100,
    length: Length = 10,
    bundle: Annotated[
        Path | None, typer.Option(help="bundle folder; default: random weights of the same shape")
    ] = None,
    as_json: Json = False,
) -> None:
    """One request's greedy list: ONNX Runtime against eager PyTorch and against the floor of its multiply-adds.

    Example: degre bench decode --candidates 100 --length 10 --json
    """
    from orchestration.bench.decode import bench_decode
    from orchestration.bench.report import show

    show(bench_decode(candidates, length, bundle), as_json)


@app.command()
def features(candidates: Candidates = 200, as_json: Json = False) -> None:
    """One request's features: our reader, cold and warm, against Feast's `get_online_features`.

    Example: degre bench features --candidates 200 --json
    """
    from orchestration.bench.features import bench_features
    from orchestration.bench.report import show

    show(bench_features(candidates), as_json)


@app.command()
def serving(candidates: Candidates = 100, length: Length = 10, as_json: Json = False) -> None:
    """The whole service over HTTP against the common way, closed loop and open loop.

    Example: degre bench serving --candidates 100 --length 10 --json
    """
    from orchestration.bench.report import show
    from orchestration.bench.serving import bench_serving

    show(bench_serving(candidates, length), as_json)


@app.command()
def quality(
    world: Annotated[str, typer.Option(help="none, substitutes, exit, hooks, mixed or saturated")] = "mixed",
    size: Annotated[str, typer.Option(help="small or large")] = "small",
    seeds: Annotated[int, typer.Option(help="seeds 0, 1, …; each a world, a log and networks of its own", min=1)] = 3,
    methods: Annotated[str, typer.Option(help="names with commas between, or `all`; `degre` is always there")] = "all",
    shares: Annotated[
        str, typer.Option(help="shares of the evaluator calls, e.g. 0.1,0.3,1: points of the curves")
    ] = "1",
    logs: Annotated[
        int | None, typer.Option(help="training requests; default: 40,000 small, 30,000 large", min=1)
    ] = None,
    mined: Annotated[int | None, typer.Option(help="mined requests; default: 8,000 small, 3,000 large", min=10)] = None,
    test: Annotated[int, typer.Option(help="fresh test requests a seed", min=2)] = 1000,
    out: Annotated[Path | None, typer.Option(help="where it works; done steps are not done again")] = None,
    config: Annotated[Path | None, typer.Option(help="configuration file (YAML)")] = None,
    as_json: Json = False,
) -> None:
    """True value of every method's lists in a simulated world, with what they cost; table, plot, JSON.

    Example: degre bench quality --world hooks --size small --seeds 1 --methods pointwise,grpo --json
    """
    import os

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # one thread a process, before numpy is there
    from degre_prod.config import load_settings
    from orchestration.bench.quality import ALL, bench_quality, parse_shares, print_table
    from orchestration.bench.report import show

    folder = out or Path("runs") / f"quality-{world}-{size}"
    document = bench_quality(
        world,
        size,
        seeds,
        methods=ALL if methods == "all" else methods.split(","),
        shares=parse_shares(shares),
        settings=load_settings(config),
        logs=logs,
        mined=mined,
        test=test,
        out=folder,
    )
    print_table(document)
    typer.echo(f"{folder}/quality.json, {folder}/quality.svg")
    if as_json:
        show(document, as_json)


@app.command()
def faults(
    seconds: Annotated[float, typer.Option(help="how long each fault lasts", min=1)] = 30.0,
    fault: Annotated[list[str] | None, typer.Option(help="only this one; may be given several times")] = None,
    rate: Annotated[float, typer.Option(help="requests a second", min=1, max=200)] = 60.0,
    as_json: Json = False,
) -> None:
    """Break one part after the other under load: Redis, features, a replica, the model, a bundle, the CPU.

    Example: degre bench faults --seconds 30 --json
    """
    from orchestration.bench.faults import bench_faults
    from orchestration.bench.report import show

    show(bench_faults(seconds, fault, rate=rate), as_json)


@app.command()
def swaps(
    count: Annotated[int, typer.Option(help="hot swaps", min=1)] = 20,
    rate: Annotated[float, typer.Option(help="requests a second", min=1, max=200)] = 60.0,
    replicas: Annotated[int, typer.Option(help="replicas that must follow", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Swap bundles under load: no request may fail, no answer may mix two bundles.

    Example: degre bench swaps --json
    """
    from orchestration.bench.report import show
    from orchestration.bench.swaps import bench_swaps

    show(bench_swaps(count, rate, replicas=replicas), as_json)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="how long the load lasts", min=1)] = 20.0, as_json: Json = False
) -> None:
    """Half the highest load for a long time: neither memory nor latency may creep up.

    Example: degre bench soak --minutes 20 --json
    """
    from orchestration.bench.report import show
    from orchestration.bench.soak import bench_soak

    show(bench_soak(minutes), as_json)
