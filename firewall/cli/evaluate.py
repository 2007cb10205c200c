"""`firewall evaluate`: attack with a whole suite, and write what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firewall.cli.describing import (
    Activation,
    ChannelOrder,
    Layout,
    Mean,
    Output,
    Preset,
    Range,
    Std,
    refuse_description,
    source_options,
)
from firewall.cli.shared import Json, Trust, open_checked
from firewall.cli.upstream import (
    UpstreamCa,
    UpstreamTokenFile,
    UpstreamUrl,
    bundle_target,
    upstream_settings,
)
from firewall.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from firewall.attack.victim import Victim
    from firewall.bundle.spec import InputSpec, Preprocessing
    from firewall.evaluation.request import Request
    from firewall.evaluation.target import Target


def evaluate(
    target: Annotated[
        Path,
        typer.Argument(help="What to attack: a bundle, or the .onnx file of a bare classifier."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Clean images: an .npz file with arrays x (images) and y (labels), or a folder; "
            "its classes are those of folders named after them, else the classifier's answers."
        ),
    ],
    suite: Annotated[
        str, typer.Option(help="Attacks to run: quick, static, black-box, adaptive or full.")
    ] = "full",
    norm: Annotated[str, typer.Option(help="Norm of the perturbations: linf or l2.")] = "linf",
    eps: Annotated[
        float, typer.Option(help="Radius of the perturbations, for values in [0, 1].")
    ] = 8 / 255,
    n: Annotated[
        int, typer.Option(min=1, help="Number of rows to evaluate, from the first.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the attacks' random draws.")] = 0,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            help="False-positive rate at which the guard decides (default: the one that the "
            "bundle was made for, else 0.01)."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of iterated attacks.")] = 50,
    queries: Annotated[
        int, typer.Option(min=1, help="Queries for each row that black-box attacks may make.")
    ] = 500,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(
            help="For transfer attacks: .onnx file of a model to forge on, which takes what the "
            "target takes; repeatable. Of a served classifier the first lends its gradients."
        ),
    ] = None,
    surrogate_data: Annotated[
        Path | None,
        typer.Option(
            help="For transfer attacks: .npz file of the attacker's own data, on which "
            "surrogates are trained."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[
        Path, typer.Option(help="Folder for the results; an evaluation in it is resumed.")
    ] = Path("evaluation"),
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    preset: Preset = None,
    mean: Mean = None,
    std: Std = None,
    value_range: Range = None,
    channel_order: ChannelOrder = None,
    layout: Layout = None,
    output: Output = None,
    activation: Activation = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Attack a bundle with a suite of attacks; writes evaluation.json and report.html."""
    try:
        import torch

        from firewall.bundle.spec import Preprocessing
        from firewall.evaluation.onnx_target import OnnxTarget
        from firewall.evaluation.provenance import provenance
        from firewall.evaluation.report import write_report
        from firewall.evaluation.request import Request
        from firewall.evaluation.run import evaluate as run
        from firewall.evaluation.target import BundleTarget
    except ImportError as error:
        raise ConfigError(
            "evaluate: attacks need torch and matplotlib; "
            "pip install 'robustness-firewall[train,attack]'"
        ) from error
    from firewall.train.data import load_npz

    request = Request(suite, norm, eps, seed, false_positive_rate or 0.01, steps, queries)
    options = source_options(
        preset=preset, mean=mean, std=std, value_range=value_range, channel_order=channel_order,
        layout=layout, output=output, activation=activation,
    )  # fmt: skip
    aim: Target
    pictures = data.is_dir()
    x, y = (None, None) if pictures else load_npz(data)
    if target.suffix == ".onnx":
        if upstream is not None:
            raise ConfigError("--upstream: is for a bundle of a served classifier")
        shape = None if x is None else (x.shape[1], x.shape[2], x.shape[3])
        sample = None if x is None else torch.from_numpy(x[:16])
        aim = OnnxTarget.read(target, shape, options, sample)
        spec, prepared = aim.spec, Preprocessing(resize=max(4, min(aim.shape[1:])))
    else:
        refuse_description(options, "the bundle says how its classifier is fed")
        bundle = open_checked(target, trust)
        where = None
        if upstream is not None:
            where = upstream_settings(upstream, upstream_ca, upstream_token_file)
        if where is not None and jobs > 1:
            raise ConfigError("--jobs: a served classifier is asked by one process; leave it out")
        aim = bundle_target(bundle, where, surrogate or [])
        spec, prepared = bundle.manifest.input, bundle.manifest.preprocessing
    promised = aim.bundle.manifest.promised_rate if isinstance(aim, BundleTarget) else None
    if false_positive_rate is None and promised is not None:
        request = replace(request, rate=promised)
    if x is None or y is None:
        x, y = read_pictures(data, spec, prepared, n, aim.victim(request.rate), aim.labels)
    x, y = x[:n], y[:n]
    if aim.note is not None:
        print(aim.note, file=sys.stderr, flush=True)
    done = run(
        aim,
        x,
        y,
        request,
        out,
        surrogates=_surrogates(aim, spec, request, surrogate or [], surrogate_data),
        provenance=provenance(),
        jobs=jobs,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    write_report(done, out / "report.html")
    result = done.result
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for warning in result["warnings"]:
        print(f"WARNING: {warning}")
    print(f"clean, accepted and right  {result['clean']['accepted_and_correct']['value']:.1%}")
    for one in result["attacks"]:
        print(
            f"{one['name']:45} {one['knowledge']:10} accepted and wrong {one['success_rate']:.1%}"
        )
    if "certified" in result:
        sure, four = result["certified"], result["certified"]["paranoia_4"]
        print(
            f"certified and right {sure['accuracy']['value']:.1%}; under paranoia 4 accepted, "
            f"right and proven {four['accepted_and_correct']['value']:.1%}"
        )
    low, high = result["worst_case"]["interval"]
    print(
        f"robust accuracy, worst case {result['worst_case']['robust_accuracy']:.1%} "
        f"({low:.1%} to {high:.1%}), {out / 'evaluation.json'}, {out / 'report.html'}"
    )


def read_pictures(
    folder: Path,
    spec: InputSpec,
    preprocessing: Preprocessing,
    count: int,
    victim: Victim,
    labels: Sequence[str],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read a folder of images as data of an evaluation.

    Args:
        folder: of images, perhaps in folders named after the classes.
        spec: of what is attacked.
        preprocessing: of encoded images.
        count: images at most.
        victim: answers for the classes, where the folders do not.
        labels: names of the classes.

    Returns:
        Images [N, C, H, W] in [0, 1], and classes [N].

    """
    import numpy as np
    import torch

    from firewall.sources.images import folder_labels, read_images

    images = read_images([folder], spec, preprocessing, count)
    x = images.pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    truth, _ = folder_labels(images, labels)
    if truth is None:
        print("the classifier's own answers are taken for the classes", file=sys.stderr)
        truth = victim.judge(torch.from_numpy(x)).bare
    return x, truth


def _surrogates(
    target: Target, spec: InputSpec, request: Request, files: list[Path], data: Path | None
) -> tuple[tuple[str, nn.Module], ...]:
    """Networks of the attacker's own: given, or trained on data of his own."""
    from firewall.evaluation.onnx_target import OnnxTarget
    from firewall.evaluation.surrogates import trained_surrogates
    from firewall.sources.describe import options_of
    from firewall.train.data import load_npz

    described = options_of(spec)
    found = [(path.stem, OnnxTarget.read(path, target.shape, described).module()) for path in files]
    if data is not None:
        x, y = load_npz(data, "--surrogate-data")
        found += trained_surrogates(target, request, x, y)
    return tuple(found)
