"""`degre bench …`: measurements. Each prints one JSON document as its last line with `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure decode, features, serving, quality.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document last")]
Candidates = Annotated[int, typer.Option(help="candidates a request", min=1)]
Length = Annotated[int, typer.Option(help="items a list", min=1)]
World = Annotated[str, typer.Option(help="none, substitutes, exit, hooks, mixed or saturated")]
Size = Annotated[str, typer.Option(help="small or large")]
Seeds = Annotated[int, typer.Option(help="seeds 0, 1, …; each a world, a log and networks of its own", min=1)]
Logs = Annotated[int | None, typer.Option(help="training requests; default: 40,000 small, 30,000 large", min=1)]
Mined = Annotated[int | None, typer.Option(help="mined requests; default: 8,000 small, 3,000 large", min=10)]
Test = Annotated[int, typer.Option(help="fresh test requests a seed", min=2)]
Jobs = Annotated[int, typer.Option(help="seeds side by side, a process of one thread each", min=1)]
Out = Annotated[Path | None, typer.Option(help="where it works; done steps are not done again")]
Config = Annotated[Path | None, typer.Option(help="configuration file (YAML)")]


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
    world: World = "mixed",
    size: Size = "small",
    seeds: Seeds = 3,
    methods: Annotated[str, typer.Option(help="names with commas between, or `all`; `degre` is always there")] = "all",
    shares: Annotated[
        str, typer.Option(help="shares of the evaluator calls, e.g. 0.1,0.3,1: points of the curves")
    ] = "1",
    logs: Logs = None,
    mined: Mined = None,
    test: Test = 1000,
    jobs: Jobs = 1,
    trivago: Annotated[
        Path | None,
        typer.Option(
            help="trivago's events file: MRR of its last day's clicks; of the other options seeds, out, config"
        ),
    ] = None,
    out: Out = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """True value of every method's lists in a simulated world, with what they cost; table, plot, JSON.

    Example: degre bench quality --world hooks --size small --seeds 1 --methods pointwise,grpo --json
    """
    _one_thread()
    from degre_prod.config import load_settings
    from orchestration.bench.quality import ALL, bench_quality, parse_shares
    from orchestration.bench.quality_summary import print_table
    from orchestration.bench.report import show

    if trivago is not None:
        from orchestration.bench.quality_trivago import bench_trivago
        from orchestration.bench.quality_trivago import print_table as print_clicks

        folder = out or Path("runs") / "quality-trivago"
        document = bench_trivago(trivago, seeds, settings=load_settings(config), out=folder)
        print_clicks(document)
        typer.echo(f"{folder}/trivago.json")
        if as_json:
            show(document, as_json)
        return
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
        jobs=jobs,
    )
    print_table(document)
    typer.echo(f"{folder}/quality.json, {folder}/quality.svg, {folder}/quality.png")
    if as_json:
        show(document, as_json)


@app.command()
def ablations(
    world: World = "mixed",
    size: Size = "small",
    seeds: Seeds = 3,
    groups: Annotated[str, typer.Option(help="names with commas between, or `all`")] = "all",
    logs: Logs = None,
    mined: Mined = None,
    test: Test = 1000,
    jobs: Jobs = 1,
    out: Out = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Change one choice of the method at a time: true value, judged value, calls and seconds; table, JSON.

    Shares every step with `degre bench quality` in the same folder. Groups: prefix_state, head, beams, width, sweeps,
    targets, tau_w, ensemble, narrow_log, exploration, data, mined, on_policy, decoder, transfer.

    Example: degre bench ablations --world hooks --size small --seeds 2 --groups head,beams --json
    """
    _one_thread()
    from degre_prod.config import load_settings
    from orchestration.bench.quality import make_plan, make_runs
    from orchestration.bench.quality_ablations import ALL_GROUPS, bench_ablations, print_ablations
    from orchestration.bench.report import show

    folder = out or Path("runs") / f"quality-{world}-{size}"
    plan = make_plan(world, size, settings=load_settings(config), logs=logs, mined=mined, test=test)
    chosen = ALL_GROUPS if groups == "all" else tuple(groups.split(","))
    document = bench_ablations(plan, make_runs(plan, seeds, folder), chosen, out=folder, jobs=jobs)
    print_ablations(document)
    typer.echo(f"{folder}/ablations.json")
    if as_json:
        show(document, as_json)


@app.command()
def tune(
    world: World = "mixed",
    size: Size = "small",
    seeds: Seeds = 1,
    method: Annotated[str, typer.Option(help="one name, several with commas between, or `all`")] = "all",
    share: Annotated[float, typer.Option(help="share of the evaluator calls that a trial may spend")] = 0.3,
    logs: Logs = None,
    mined: Mined = None,
    test: Test = 1000,
    jobs: Jobs = 1,
    out: Out = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """As many configurations for every method, on validation requests, chosen by the judge and never by truth.

    Example: degre bench tune --world hooks --size small --method grpo,degre --json
    """
    _one_thread()
    from degre_prod.config import load_settings
    from orchestration.bench.quality import make_plan, make_runs
    from orchestration.bench.quality_tune import TUNABLE, bench_tune, print_trials
    from orchestration.bench.report import show

    folder = out or Path("runs") / f"quality-{world}-{size}"
    plan = make_plan(world, size, settings=load_settings(config), logs=logs, mined=mined, test=test)
    chosen = TUNABLE if method == "all" else tuple(method.split(","))
    document = bench_tune(plan, make_runs(plan, seeds, folder), chosen, share=share, out=folder, jobs=jobs)
    print_trials(document)
    typer.echo(f"{folder}/tune.json")
    if as_json:
        show(document, as_json)


@app.command()
def results(
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", help="folder of a `degre bench quality` run; may be given several times"),
    ] = None,
    docs: Annotated[Path, typer.Option(help="folder with results.md")] = Path("docs"),
    as_json: Json = False,
) -> None:
    """Write the tables and plots of docs/results.md from quality.json documents; they are kept in docs/results.

    Example: degre bench results --from runs/quality-hooks-small --from runs/quality-mixed-small
    """
    from orchestration.bench.quality_results import bench_results
    from orchestration.bench.report import show

    show(bench_results(source or [], docs), as_json)


@app.command()
def mining(
    requests: Annotated[int, typer.Option(help="requests of one timing on one core", min=4)] = 128,
    repeats: Annotated[int, typer.Option(help="repeats; medians are reported", min=1)] = 3,
    kills: Annotated[
        int | None, typer.Option(help="instead kill mining so many times and compare files", min=1)
    ] = None,
    workers: Annotated[int, typer.Option(help="of the group that is killed; 0 mines without Ray", min=0)] = 2,
    as_json: Json = False,
) -> None:
    """Mined requests a second, one core and two workers, against encoding every prefix anew; or mining killed and resumed.

    Example: degre bench mining --kills 10 --json
    """
    _one_thread()
    import tempfile
    from functools import partial

    from orchestration.bench.mining import bench_mining
    from orchestration.bench.mining_kills import bench_kills
    from orchestration.bench.report import show

    say = partial(typer.echo, err=True)
    if kills is None:
        document = bench_mining(requests=requests, repeats=repeats, say=say)
    else:
        with tempfile.TemporaryDirectory() as folder:
            document = bench_kills(Path(folder), kills, workers=workers, say=say)
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


def _one_thread() -> None:
    """One thread a process, said before numpy is there: timings are of one thread, results the same everywhere."""
    import os

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
