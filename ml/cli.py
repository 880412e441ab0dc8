"""`zkmark-ml`: train, mark and evaluate networks.  Exit status 0 done, 1 the mark did not take, 2 misuse or bad files.

Heavy modules are imported when a command needs them, so that --help answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ml.options import (
    DATA,
    FILE,
    check_folder,
    data_option,
    json_option,
    load_key,
    load_network,
    outcome,
    own,
    prepare,
    read_model,
    say,
    secret_options,
    training_options,
    training_progress,
    weights_options,
    write_model,
)
from protocol.errors import ParameterError
from zkmark.terminal import FAILED, Number, Program, progress

SCHEMES = click.Choice(["backdoor", "frontier", "certified"])
POSITIVE = Number(min=0, min_open=True)


@click.group(cls=Program, misuse=FAILED, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train networks with and without a watermark, and evaluate them."""


@cli.command("train")
@training_options
@outcome
def train_command(
    data: str, arch: str, width: float, epochs: int | None, seed: int, device: str, out: Path, as_json: bool
) -> None:
    """Train a network without a mark."""
    from ml.export import export_onnx
    from ml.mark import train

    check_folder(out)
    dataset, model, options = prepare(data, arch, width, epochs, seed, device)
    with training_progress(as_json) as report:
        trained = train(model, dataset, options, report)
    write_model(out, export_onnx(model, dataset.shape))
    result = {"done": True, "data": dataset.source, "test_accuracy": trained.test_accuracy, "out": str(out)}
    say(as_json, result, f"{out}: {trained.test_accuracy:.2%} of the test images of {data} ({dataset.source})")


@cli.command("triggers")
@click.option("--scheme", required=True, type=click.Choice(["frontier", "certified"]))
@click.option("--count", type=click.IntRange(min=2), default=200, show_default=True,
              help="Number of triggers; half of them, by the key's coin, stay secret.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder for images and labels.")
@click.option("--model", type=FILE, help="Of frontier: the trained network that will be marked, ONNX of `train`.")
@click.option("--epsilon", type=POSITIVE,
              help="Of frontier: length of the step, for pixels scaled to 0..1 [default: 0.25].")  # fmt: skip
@click.option("--norm", type=click.Choice(["linf", "l2", "l1"]), help="Of frontier: of the step [default: linf].")
@click.option("--kind", type=click.Choice(["content", "noise", "abstract", "unrelated"]),
              help="Of certified: training images with a text or noise on them, abstract ones, or those of --other "
                   "[default: content].")  # fmt: skip
@click.option("--other", type=DATA, help="Of certified: the data set of another task that unrelated images are from.")
@click.option("--label", type=click.IntRange(min=0), help="Of certified: the class of all images [default: 0].")
@weights_options("frontier")
@data_option
@json_option
@outcome
def triggers_command(
    scheme: str, count: int, out: Path, model: Path | None, epsilon: float | None, norm: str | None, kind: str | None,
    other: str | None, label: int | None, arch: str | None, width: float | None, data: str, as_json: bool,
) -> None:  # fmt: skip
    """Make triggers whose labels the scheme fixes: images and a table of labels, for `zkmark-prover keygen`.

    Of frontier: test images, moved next to the decision frontier of --model; its accuracy on their originals means
    little after the mark.  Of certified: images of one class.  A backdoor needs no such command: `keygen` makes its
    triggers.  Nobody can make the same again: chance is the system's.
    """
    own(
        scheme, frontier={"model": model, "arch": arch, "width": width, "epsilon": epsilon, "norm": norm},
        certified={"kind": kind, "other": other, "label": label},
    )  # fmt: skip
    if scheme == "frontier" and model is None:
        raise click.UsageError("--scheme frontier needs --model")
    if (kind == "unrelated") != (other is not None) or other == data:
        raise click.UsageError("--kind unrelated, and no other, needs --other, a data set besides that of --data")
    check_folder(out)
    if out.exists():
        raise ParameterError(f"{out} exists")
    from secrets import randbits

    from torch import nn

    from ml.data import load
    from ml.owner import scheme_called
    from ml.schemes.certified import Certified

    network: nn.Module = nn.Identity()  # which certified triggers do without
    if model is None:
        dataset = load(data)
    else:
        dataset, network = load_network(data, read_model(model), arch, width)
    fields = {"epsilon": epsilon, "norm": norm, "triggers": kind, "label": label}
    made = scheme_called(scheme, {k: v for k, v in fields.items() if v is not None}, seed=randbits(128))
    if other is not None and isinstance(made, Certified):
        key = made.unrelated_key(count, dataset, load(other).train_x)
    else:
        key = made.make_key(count, network, dataset)
    table = key.write(out)
    result = {"done": True, "data": dataset.source, "scheme": scheme, "count": count, "shape": key.shape,
              "classes": key.classes, "triggers": str(out / "images"), "labels": str(table)}  # fmt: skip
    task = f"--shape {','.join(map(str, key.shape))} --classes {key.classes}"
    command = f"zkmark-prover keygen {task} --triggers {out / 'images'} --chosen-labels {table} --mk ... --vk ..."
    say(as_json, result, f"{count} triggers (keep them secret); next:\n{command}")


@cli.command("mark")
@click.option("--scheme", type=SCHEMES, default="backdoor", show_default=True)
@click.option("--mk", required=True, type=FILE, help="The marking key.")
@click.option("--mode", type=click.Choice(["fromscratch", "pretrained"]), help="Of backdoor [default: fromscratch].")
@click.option("--init", type=FILE,
              help="A trained network, ONNX of `train`, to begin with.  Of backdoor: for pretrained [default: train "
                   "one].  frontier needs it.")  # fmt: skip
@click.option("--rehearsal", type=click.IntRange(min=0),
              help="Of frontier: training images per epoch, without which small networks forget [default: 0].",
)  # fmt: skip
@click.option("--rate", type=POSITIVE, help="Of frontier: of its steps [default: 0.001].")
@click.option("--sigma", type=POSITIVE,
              help="Of certified: largest deviation of the noise, that of the weights at most [default: 1].",
)  # fmt: skip
@click.option("--replays", type=click.IntRange(min=1), help="Of certified: levels of noise [default: 20].")
@click.option("--draws", type=click.IntRange(min=1), help="Of certified: of noise per level [default: 100].")
@click.option("--warm-up", type=click.IntRange(min=0), help="Of certified: epochs without noise [default: 5].")
@secret_options
@training_options
@outcome
def mark_command(
    scheme: str, mk: Path, mode: str | None, init: Path | None, rehearsal: int | None, rate: float | None,
    sigma: float | None, replays: int | None, draws: int | None, warm_up: int | None, passphrase_file: Path | None,
    key_file: Path | None, data: str, arch: str, width: float, epochs: int | None, seed: int, device: str, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Train a network that keeps the key's secret triggers.

    A backdoor comes in from scratch or into a trained network; frontier stitching fine-tunes a trained one on the
    triggers (--epochs: at most, by default 100); a certified mark is trained under noise (--epochs: by default 100).
    """
    given = own(
        scheme, backdoor={"mode": mode}, frontier={"rehearsal": rehearsal, "rate": rate},
        certified={"sigma": sigma, "replays": replays, "draws": draws, "warm_up": warm_up},
    )  # fmt: skip
    pretrained = given.pop("mode", None) == "pretrained"
    if init is not None and scheme == "backdoor" and not pretrained:
        raise click.UsageError("--init belongs to --mode pretrained")
    if init is None and scheme == "frontier":
        raise click.UsageError("--scheme frontier needs --init, the network that its triggers were made for")
    check_folder(out)
    key = load_key(mk, passphrase_file, key_file)
    from ml import owner
    from ml.descent import pick_device
    from ml.export import export_onnx, load_weights
    from ml.mark import train

    dataset, model, training = prepare(data, arch, width, epochs, seed, device)
    if key.vk.parameters.shape != dataset.shape or key.vk.parameters.classes != dataset.classes:
        raise ParameterError(f"the key is for images {key.vk.parameters.shape}, {data} has {dataset.shape}")
    marking = owner.scheme_called(scheme, given | ({} if epochs is None else {"epochs": epochs}), training, seed)
    triggers = owner.hidden_key(marking, key)
    model.to(pick_device(device))
    with training_progress(as_json) as report:
        if init is not None:
            load_weights(model, read_model(init))
        elif pretrained:
            train(model, dataset, training, report)
        marked = owner.mark(marking, model, dataset, triggers, report)
    write_model(out, export_onnx(model, dataset.shape))
    kept = marked.trigger_accuracy or 0.0
    result: dict[str, Any] = {
        "done": True, "data": dataset.source, "scheme": scheme, "test_accuracy": marked.test_accuracy,
        "trigger_accuracy": kept, "h": key.vk.h, "extra_steps": marked.extra_steps, "out": str(out),
    }  # fmt: skip
    if scheme == "backdoor":
        result["mode"] = "pretrained" if pretrained else "fromscratch"
    accuracy = f"{marked.test_accuracy:.2%} of the test images of {data} ({dataset.source})"
    say(as_json, result, f"{out}: {kept:.2%} of {key.vk.h} secret triggers, {accuracy}")


@cli.command("evaluate")
@click.option("--model", required=True, type=FILE, help="The network, ONNX.")
@data_option
@click.option("--mk", type=FILE, help="The marking key, for the verdict on the triggers that the model keeps.")
@click.option("--scheme", type=SCHEMES, help="Of the mark; needed under chosen labels [default: backdoor].")
@click.option("--sigma", type=POSITIVE,
              help="Of certified: find the distance of weights within which every model, smoothed by noise of this "
                   "deviation, keeps the triggers.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), help="Of certified: noisy copies [default: 1000].")
@click.option("--share", type=Number(min=0, min_open=True, max=1),
              help="Of certified: of the triggers, kept within the distance [default: 0.5].")  # fmt: skip
@weights_options("certified")
@secret_options
@json_option
@outcome
def evaluate_command(
    model: Path, data: str, mk: Path | None, scheme: str | None, sigma: float | None, samples: int | None,
    share: float | None, arch: str | None, width: float | None, passphrase_file: Path | None, key_file: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Accuracy of a model and of its integer network, and the owner's private verdict on its mark.

    The verdict: matches, the p-value under the null model of the scheme, the bits by which false claims are bounded or
    the reason why they are not, the fewest matches for a proof, and whether the model has them.
    """
    asked = own(
        scheme or "backdoor",
        certified={"sigma": sigma, "samples": samples, "share": share, "arch": arch, "width": width},
    )
    if (scheme is not None and mk is None) or (asked and sigma is None):
        raise click.UsageError("--scheme belongs to --mk" if mk is None else "a certificate needs --sigma")
    key = None if mk is None else load_key(mk, passphrase_file, key_file)
    from ml import owner
    from ml.data import load
    from ml.evaluate import accuracy, matches
    from ml.verdict import judge_file, sentences
    from protocol.keygen import LabelRule

    if key is not None and scheme is None and key.vk.parameters.label_rule is LabelRule.CHOSEN:
        raise click.UsageError("the labels of the key were chosen: say by which --scheme")
    dataset, model_bytes = load(data), read_model(model)
    result: dict[str, Any] = {"done": True, "data": dataset.source}
    with progress(as_json) as report:
        report(f"{len(dataset.test_x)} test images", 0.0)
        measured = accuracy(model_bytes, dataset.test_x, dataset.test_y)
        result["accuracy"] = asdict(measured)
        lines = [
            f"{data} ({dataset.source}), {measured.count} test images: float {measured.real:.2%}, "
            f"integer {measured.integer:.2%}, the same class {measured.agreement:.2%}"
        ]
        if key is not None:
            report("triggers", 0.5)
            judged = owner.scheme_called(scheme or "backdoor", {})
            hidden = owner.hidden_key(judged, key)
            verdict = judge_file(judged, hidden, model_bytes)
            opened = matches(model_bytes, key.images[key.vk.opened], key.labels[key.vk.opened])
            if sigma is not None:
                report("certificate", 0.8)
                network = load_network(data, model_bytes, arch, width)[1]
                certificate = owner.certificate(network, hidden, sigma, samples or 1000, share or 0.5)
                verdict = replace(verdict, certificate=certificate)
            result |= {"verdict": verdict.to_json(), "opened": asdict(opened)}
            lines += [f"opened triggers: {opened.integer} of {opened.count} (float {opened.real})"]
            lines += sentences(verdict, hidden)
    say(as_json, result, "\n".join(lines))


def _tell(what: str) -> None:
    """A line of progress.  Worker processes are given this function, so it has a name in its module."""
    click.echo(what, err=True)


@cli.command("experiment")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--preset", default="ci", show_default=True, help="ci: minutes; cpu: hours; gpu: the papers' scale.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Seeds side by side.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Where they run: on this machine, or in a Ray cluster that shares --out.")
@click.option("--address", metavar="HOST:PORT", help="A running Ray cluster [default: one of this machine].")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results [default: watermarks-PRESET].",
)  # fmt: skip
@json_option
@outcome
def experiment_command(
    names: tuple[str, ...], preset: str, jobs: int, engine: str, address: str | None, out: Path | None, as_json: bool
) -> None:
    """Measure the papers' tables and figures: the NAMEs given, or all.  Goes on where an earlier run stopped."""
    if address is not None and engine != "ray":
        raise click.UsageError("--address is of a Ray cluster: give --engine ray")
    from ml.experiments.run import run

    folder = out or Path(f"watermarks-{preset}")
    page = run(names, preset, folder, None if as_json else _tell, jobs=jobs, ray=engine == "ray", address=address)
    say(as_json, {"done": True, "results": str(page)}, str(page))


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
