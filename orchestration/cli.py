"""The command line `degre`. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from degre_prod.errors import DegreError
from orchestration.commands import (
    bench,
    bench_costs,
    bench_kills,
    bench_loop,
    bench_rollout,
    bench_rollout_drill,
    data,
    features,
    loop,
    pipeline,
    replay,
    retrain,
    rollout,
    serve,
    stack,
    submit,
)

INTERRUPTED = 130

app = typer.Typer(
    help="DeGRe: from impression logs to a reranker in production. Start with `degre demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(pipeline.demo)
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(pipeline.train_app, name="train")
app.command("mine")(pipeline.mine)
app.command("evaluate")(pipeline.evaluate)
app.add_typer(pipeline.bundle_app, name="bundle")
app.command("serve")(serve.serve)
app.command("rerank")(serve.rerank)
app.command("collect")(loop.collect)
app.command("forget")(loop.forget)
app.command("retrain")(retrain.retrain)
app.command("replay")(replay.replay)
# what follows the job's name is the job's own
app.command("submit", context_settings={"allow_interspersed_args": False})(submit.submit)
app.command("backup")(stack.backup)
app.command("restore")(stack.restore)
app.add_typer(stack.app, name="stack")
bench.app.command("loop")(bench_loop.loop)
bench.app.command("loop-kills")(bench_kills.loop_kills)
bench.app.command("off-policy")(bench_loop.off_policy)
bench.app.command("rollout-stats")(bench_rollout.rollout_stats)
bench.app.command("rollout")(bench_rollout_drill.rollout)
bench.app.command("unit-costs")(bench_costs.unit_costs)
bench.app.command("capacity")(bench_costs.capacity)
app.add_typer(rollout.app, name="rollout")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point: our own errors become one line on stderr and exit code 2."""
    try:
        app()
    except DegreError as error:
        print(f"degre: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
            print("degre: interrupted; the same command goes on where it was", file=sys.stderr)
        raise
