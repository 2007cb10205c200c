"""Write the tables of the pages from the results that commands measured.

    python -m benchmarks.tables [--check]

Between `<!-- table: NAME -->` and `<!-- end -->` nothing is written by hand. A table whose result
does not exist yet says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from firewall.evaluation.formats import interval, percent
from firewall.train.card import render_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "core-guards.md",
    ROOT / "docs" / "threat-model.md",
    ROOT / "docs" / "attacks.md",
    ROOT / "docs" / "training.md",
    ROOT / "docs" / "generators.md",
    ROOT / "docs" / "operations.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "how-to" / "guard-your-model.md",
    ROOT / "docs" / "reference" / "real-models.md",
)
#: How forgeries of `benchmarks.core_guards` are sent.
SENT = ("PNG", "JPEG 90", "JPEG 75")
_NOT_MEASURED = ["Not measured yet."]
_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str, file: str = "result.json") -> dict[str, Any]:
    """Read what a benchmark wrote."""
    path = ROOT / "benchmarks" / "results" / name / file
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def benign() -> list[str]:
    return render_table("benign", result("core-guards")).splitlines()


def forgeries() -> list[str]:
    return render_table("forgeries", result("core-guards")).splitlines()


def witness() -> list[str]:
    """Refused without and with the second network: what it is for, and what it costs."""
    plain, found = result("core-guards"), result("witness")
    known = {(one["attack"], one["radius_255"], one["sent"]): one for one in plain["attacks"]}
    rows = [
        f"| refused at a promised {percent(found['rate'])} | default | with the second network |",
        "|---|---|---|",
    ]
    for name in ("as it is", *(name for name in found["benign"] if "sigma 2" in name)):
        sides = [_share(one["benign"][name]["refused"]) for one in (plain, found)]
        rows.append(f"| clean photographs, {name} | {' | '.join(sides)} |")
    for one in found["attacks"]:
        before = known[(one["attack"], one["radius_255"], one["sent"])]
        sides = [_share(side["refused"]) for side in (before, one)]
        rows.append(f"| {one['attack']}, {one['sent']} | {' | '.join(sides)} |")
    return rows


def unseen() -> list[str]:
    rows = ["| forgeries of Lite2, 4/255 | " + " | ".join(SENT) + " |", "|---|---|---|---|"]
    found = result("unseen-classifier")["attacks"]
    for name in dict.fromkeys(one["attack"] for one in found):
        sides = [_share(one["refused"]) for one in found if one["attack"] == name]
        rows.append(f"| {name} | {' | '.join(sides)} |")
    return rows


def _share(figure: dict[str, Any]) -> str:
    if not figure["of"]:
        return "none fools"
    return f"{percent(figure['share'])} ({interval(figure['interval'])}) of {figure['of']}"


def latency() -> list[str]:
    found = result("latency")
    rows = [
        "| threads | bare p50 | guarded p50 | ratio of p50 | of means | of p95 | of p99 | "
        "rows doubted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in found["in_process"]:
        ratio = run["ratio"]
        rows.append(
            f"| {run['threads']} | {run['bare']['p50_ms']:.1f} ms | "
            f"{run['guarded']['p50_ms']:.1f} ms | {ratio['p50']:.2f} | {ratio['mean']:.2f} | "
            f"{ratio['p95']:.2f} | {ratio['p99']:.2f} | {100 * run['escalated_share']:.0f} % |"
        )
    served = found["served"]
    rows += [
        "",
        f"Served to {served['clients']} clients on one core, beside a gRPC server with the bare "
        f"classifier: {served['ratio']['requests_per_second']:.2f} of its requests a second, "
        f"{served['ratio']['p50_ms']:.2f} of its p50, {served['ratio']['p99_ms']:.2f} of its p99 "
        f"(medians of {served['rounds']} rounds).",
    ]
    start = found["start"]
    rows += [
        "",
        f"From `firewall serve` to ready {start['ready_seconds']:.1f} s, to the first answer "
        f"{start['first_answer_seconds']:.1f} s, resident {start['resident_mib']:.0f} MiB "
        f"(medians of {start['runs']} starts).",
    ]
    return rows


def timing() -> list[str]:
    rows = ["| threads | a row that looks innocent, p50 | a doubtful one |", "|---|---|---|"]
    for run in result("latency")["in_process"]:
        times = [
            f"{run['by_tier'][name]['p50_ms']:.0f} ms" if name in run["by_tier"] else "none"
            for name in ("innocent", "doubtful")
        ]
        rows.append(f"| {run['threads']} | {' | '.join(times)} |")
    return rows


def suite() -> list[str]:
    return render_table("suite", result("imagenet-default", "evaluation.json")).splitlines()


def masking() -> list[str]:
    found = result("gradient-masking", "evaluation.json")
    worst = found["worst_case"]
    rows = ["| attack | knows | robust accuracy |", "|---|---|---|"]
    rows += [
        f"| {one['name']} | {one['knowledge']} | {percent(one['robust_accuracy'])} |"
        for one in found["attacks"]
        if one["bounded"]
    ]
    rows.append(
        f"| all together | | **{percent(worst['robust_accuracy'])}** "
        f"({interval(worst['interval'])}) |"
    )
    rows += [
        "",
        f"Clean accuracy {percent(found['clean']['accuracy']['value'])}. Warnings raised:",
        "",
    ]
    return rows + [f"- {line}" for line in found["warnings"]]


def speed() -> list[str]:
    found = result("attack-speed")
    rows = ["| PGD-50 by | images a second | ours is so many times as fast |", "|---|---|---|"]
    for name, rate in found["images_per_second"].items():
        rows.append(f"| {name} | {rate:.0f} | {found['ratio_of_ours'][name]:.2f} |")
    return rows


def one_forgery() -> list[str]:
    found = result("one-forgery")
    rows = [
        "| attack | given | against | largest change | queries (refused) | then the guard says |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["forgeries"]:
        after = one["after"]
        said = "refused" if after["refused"] else f"class {after['label']}, accepted"
        said = said if one["succeeded"] or after["refused"] else f"{said}: not fooled"
        asked = f"{one['queries']} ({one['refusals']})" if one["queries"] else "none"
        rows.append(
            f"| {one['method']} | {one['options'].replace('--', '') or 'nothing'} | "
            f"{one['against']} | {255 * one['linf']:.1f}/255 | {asked} | {said} |"
        )
    held = [one for one in found["forgeries"] if "holds_under_views" in one]
    rows += [""] + [
        f"The physical one holds under {percent(one['holds_under_views'])} of photographs of it, "
        "for the bare classifier."
        for one in held
    ]
    return rows


RECIPES = (
    "digits-smoke",
    "digits-ensemble",
    "fashion-quick",
    "fashion-strong",
    "fashion-certified",
)


def recipe_runs() -> list[str]:
    rows = [
        "| recipe | rows, L∞ | classifier: clean | robust | firewall at "
        "1 %: clean, accepted and right | false positives | robust, adaptive | certified | "
        "proven under paranoia 4 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in RECIPES:
        if not (ROOT / "benchmarks" / "results" / name / "evaluation.json").exists():
            continue
        found = result(name, "evaluation.json")
        bare, whole, sure = found["guard_model"], found["firewall"], found["certified"]
        suite = found["evaluation"]
        proven = sure["paranoia_4"]["accepted_and_correct"]["value"] if sure else None
        rows.append(
            f"| `{name}` | {suite['n']}, {suite['threat_model']['radius']:g} | "
            f"{percent(bare['clean_accuracy']['value'])} | {percent(bare['robust_accuracy'])} | "
            f"{percent(whole['clean_accepted_and_correct']['value'])} | "
            f"{percent(whole['false_positive_rate']['value'])} | "
            f"{percent(whole['robust_accuracy'])} | "
            f"{percent(sure['accuracy']['value']) if sure else 'none'} | "
            f"{'none' if proven is None else percent(proven)} |"
        )
    return rows


def class_promise() -> list[str]:
    rows = [
        "| rate | promised to | refused, of all clean images | of the class that is refused "
        "least | most |",
        "|---|---|---|---|---|",
    ]
    for rate, promises in result("class-promise")["rates"].items():
        for promise, found in promises.items():
            classes = found["by_class"].values()
            whom = "all together" if promise == "overall" else "each class"
            rows.append(
                f"| {percent(float(rate))} | {whom} | {percent(found['overall'])} | "
                f"{percent(min(classes))} | {percent(max(classes))} |"
            )
    return rows


def recipe_detection() -> list[str]:
    names = [
        name
        for name in RECIPES
        if (ROOT / "benchmarks" / "results" / name / "evaluation.json").exists()
    ]
    every = {name: result(name, "evaluation.json")["evaluation"] for name in names}
    rows = [
        "| attack | knows | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    order: dict[str, str] = {}
    for found in every.values():
        order |= {one["name"]: one["knowledge"] for one in found["attacks"]}
    for attack, knowledge in order.items():
        cells = []
        for found in every.values():
            [one] = [one for one in found["attacks"] if one["name"] == attack] or [None]
            if one is None:
                cells.append("not run")
                continue
            seen = one.get("of_those_that_fool")
            if seen is None:
                # Evaluated before this was counted.
                cells.append(f"not counted, {percent(one['success_rate'])}")
                continue
            through = percent(one["success_rate"])
            cells.append(
                f"none fools, {through}"
                if not seen["rows"]
                else f"{seen['auroc']:.3f}, {percent(seen['detected_rate'])} of {seen['rows']}, "
                f"{through}"
            )
        rows.append(f"| {attack} | {knowledge} | " + " | ".join(cells) + " |")
    return rows


def time_to_robustness() -> list[str]:
    found = result("time-to-robustness")
    rows = [
        f"| trainer | seconds to {percent(found['aim'])} | best seen | after |",
        "|---|---|---|---|",
    ]
    for name, one in found["trainers"].items():
        best = max(one["curve"], key=lambda point: point["robust_accuracy"])
        reached = "not reached" if one["seconds"] is None else f"{one['seconds']:.0f}"
        rows.append(
            f"| {name} | {reached} | {percent(best['robust_accuracy'])} | {best['seconds']:.0f} s |"
        )
    return rows


def choices() -> list[str]:
    found = result("choices")["choices"]
    rows = [
        "| training | clean, two seeds | robust | certified |",
        "|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = " | ".join(
            ", ".join(percent(run[key]) for run in runs)
            for key in ("clean_accuracy", "robust_accuracy", "certified_accuracy")
        )
        rows.append(f"| {name} | {cells} |")
    return rows


def query_attacks() -> list[str]:
    found = result("query-attacks")
    rows = [
        "| attacker | attack | questions an image | succeeds | noticed | after (median) |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["attacks"]:
        after = one["median_queries_to_notice"]
        rows.append(
            f"| {one['variant']} | {one['attack']} | {one['budget']:,} | "
            f"{percent(one['success_rate'])} | "
            + (f"{percent(one['noticed_share'])} | " if one["monitors"] else "| ")
            + ("|" if after is None else f"{after:.0f} |")
        )
    clean = found["benign"]
    count = found["attacks"][0]["images"]
    rows += [
        "",
        f"{count} images each. Of {clean['requests']:,} clean requests monitors refused "
        f"{clean['alarms']} ({100 * clean['rate']:.2f} %).",
    ]
    return rows


def faults() -> list[str]:
    bad, chaos = result("malformed"), result("chaos")
    grown = 100 * bad["memory_mib"]["growth"]
    rows = [
        "| what | how often | requests | other than documented | wrong answers |",
        "|---|---|---|---|---|",
        f"| malformed and mutated requests, memory {grown:+.1f} % | | {bad['requests']:,} | "
        f"{len(bad['undocumented'])} | |",
    ]
    for name, count in chaos["faults"].items():
        sent = sum(chaos["statuses"][name].values())
        other = sum(chaos["undocumented"].get(name, {}).values())
        rows.append(f"| {name} | {count} | {sent:,} | {other} | |")
    kept = chaos["quarantine"]
    rows.append(
        f"| all faults together | | {chaos['requests']:,} | "
        f"{sum(sum(one.values()) for one in chaos['undocumented'].values())} | "
        f"{chaos['wrong_answers']} |"
    )
    return [
        *rows,
        "",
        f"{kept['rows']} quarantined rows were kept, {kept['readable']} with images.",
    ]


def gan_losses() -> list[str]:
    found = result("gan-losses")
    window, losses = found["window"], found["losses"]
    steps = range(0, found["steps"], window)
    rows = [
        "| loss | median of | " + " | ".join(f"steps {n} to {n + window}" for n in steps) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for name, one in losses.items():
        for title, key in (
            ("length of G's gradient", "gradient_generator"),
            ("D(G(z))", "generated"),
        ):
            cells = " | ".join(f"{value:.2g}" for value in one[key])
            rows.append(f"| `{name}` | {title} | {cells} |")
    return rows


def generated_runs() -> list[str]:
    """Recipes with a generator whose arms were measured."""
    every = ("fashion-gan", "fashion-gan-low-data")
    return [one for one in every if (ROOT / "benchmarks/results" / one / "result.json").exists()]


def generated_arms() -> list[str]:
    rows = [
        "| recipe, training images | arm | robust, 95 % | ahead of real only | clean | share |",
        "|---|---|---|---|---|---|",
    ]
    for name in generated_runs():
        found = result(name)
        for arm, one in found["arms"].items():
            ahead = one["ahead_of_real"]
            low, high = ahead["interval"]
            rows.append(
                f"| `{name}`, {found['rows']['train']:,} | {arm} | "
                f"{percent(one['robust_accuracy'])} ({interval(one['interval'])}) | "
                + (
                    "|"
                    if arm == "real only"
                    else f"{100 * ahead['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |"
                )
                + f" {percent(one['clean_accuracy'])} | {percent(one['ratio'])} |"
            )
    return rows


def generated_scores() -> list[str]:
    rows = [
        "| recipe | images | Fréchet distance (floor; class means; noise) | precision | recall | "
        "density | coverage | class agreement | membership AUROC (innocent) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in generated_runs():
        for arm, one in result(name)["scores"].items():
            ceilings = one["ceilings"]
            privacy = one["privacy"]
            rows.append(
                f"| `{name}` | {arm} | {one['frechet_distance']:.2f} "
                f"({one['floor']['frechet_distance']:.2f}; "
                f"{ceilings['class means']['frechet_distance']:.0f}; "
                f"{ceilings['noise']['frechet_distance']:.0f}) | {one['precision']:.2f} | "
                f"{one['recall']:.2f} | {one['density']:.2f} | {one['coverage']:.2f} | "
                f"{percent(one['class_agreement'])} | {privacy['membership_auroc']:.3f} "
                f"({privacy['innocent']['membership_auroc']:.3f}) |"
            )
    return rows


def translation_looks() -> list[str]:
    found = result("translation")["looks"]
    rows = ["| images | the classifier of clean ones is right about |", "|---|---|"]
    rows += [f"| {name} | {percent(value)} |" for name, value in found["accuracy"].items()]
    errors = found["cycle_error"]
    return [
        *rows,
        "",
        f"Cycle error (mean absolute, of 1): {errors['clean']:.3f} clean, "
        f"{errors['photographed']:.3f} photographed.",
    ]


def translation_denoisers() -> list[str]:
    rows = [
        "| before the classifier | PSNR clean | PSNR forged | clean | forged without it in mind | "
        "forged through it |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in result("translation")["denoisers"].items():
        clean = "" if one["psnr_clean"] is None else f"{one['psnr_clean']:.1f} dB"
        rows.append(
            f"| {name} | {clean} | {one['psnr_forged']:.1f} dB | "
            f"{percent(one['clean_accuracy'])} | {percent(one['oblivious'])} | "
            f"{percent(one['adaptive'])} |"
        )
    return rows


def serving(job: str) -> list[str]:
    found = result("serving")[job]
    counts = [key for key in next(iter(found.values())) if key.isdigit()]
    rows = [
        "| server | "
        + " | ".join(f"{key} client{'s' if key != '1' else ''}: /s, p50, p99 ms" for key in counts)
        + " | at a steady rate: p50, p99 ms | CPU s per 1,000 | memory MiB | start s |",
        "|---|" + "---|" * (len(counts) + 4),
    ]
    for name, one in found.items():
        cells = " | ".join(
            f"{one[key]['per_second']:,.0f}, {one[key]['p50_ms']:.1f}, {one[key]['p99_ms']:.1f}"
            for key in counts
        )
        steady = one.get("open")
        rows.append(
            f"| {name} | {cells} | "
            + ("|" if steady is None else f"{steady['p50_ms']:.1f}, {steady['p99_ms']:.1f} |")
            + f" {one[counts[-1]]['cpu_seconds_per_1000']:.2f} | {one['memory_mib']:.0f} | "
            f"{one['start_seconds']:.1f} |"
        )
    return rows


def serving_ratios() -> list[str]:
    aims = {
        "small_guarded_over_best_bare_peer": (
            "small CNN, all guards, requests a second at 32 clients ÷ best bare peer", "≥ 1.7"),
        "small_guarded_over_plain": (
            "the same ÷ gRPC and onnxruntime without a guard", "≥ 0.65"),
        "rest_guarded_over_best_bare_peer_rest": (
            "the same over REST ÷ best bare peer over REST", "≥ 2.0"),
        "image_guarded_p50_over_bare": (
            "EfficientNet-Lite0, guarded p50 ÷ bare onnxruntime p50, in one process", "≤ 1.10"),
        "jpeg_guarded_p50_over_bare": ("the same from JPEG bytes, decoding included", ""),
        "health_p99_ms": (
            "slowest probe's p99 while eight clients send photographs, ms", "≤ 50"),
        "memory_over_bare": ("server memory ÷ bare onnxruntime process", "≤ 1.5"),
        "start_seconds": ("seconds from start to first answer", "≤ 1.5"),
    }  # fmt: skip
    found = result("serving")
    ranges = found.get("ranges", {})
    rows = ["| | aim | measured | lowest and highest turn |", "|---|---|---|---|"]
    for key, (what, aim) in aims.items():
        if key in found["ratios"]:
            turns = " to ".join(f"{turn:.2f}" for turn in ranges.get(key, ()))
            rows.append(f"| {what} | {aim} | {found['ratios'][key]:.2f} | {turns} |")
    return rows


def serving_brief() -> list[str]:
    found = result("serving")["small"]
    echo = "raw echo, threads"
    shown = {
        "Triton (PyTriton)": ("Triton (PyTriton)", "none"),
        "LitServe": ("LitServe", "none"),
        "KServe": ("KServe", "none"),
        "MLServer": ("MLServer", "none"),
        echo: ("gRPC alone, an echo that computes nothing", "none"),
        "firewall, all guards": ("firewall", "all"),
        "Triton (PyTriton), REST": ("Triton (PyTriton), REST", "none"),
        "KServe, REST": ("KServe, REST", "none"),
        "MLServer, REST": ("MLServer, REST", "none"),
        "firewall, all guards, REST": ("firewall, REST", "all"),
    }
    rows = [
        "| server | guard | requests a second | p50 | memory |",
        "|---|---|---|---|---|",
    ]
    for key, (name, guard) in shown.items():
        if key not in found:
            continue
        one = found[key]
        loaded = one["32"]
        rows.append(
            f"| {name} | {guard} | {loaded['per_second']:,.0f} | {loaded['p50_ms']:.1f} ms | "
            f"{one['memory_mib']:.0f} MiB |"
        )
    return rows


def health() -> list[str]:
    found = result("serving").get("health")
    if found is None:
        return _NOT_MEASURED
    rows = [
        f"| probe | a second | idle: p50 | p99 | {found['clients']} clients send photographs: p50 "
        "| p99 | not answered |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, probe in found["probes"].items():
        cells = " | ".join(
            f"{probe[state][key]:.1f} ms"
            for state in ("idle", "loaded")
            for key in ("p50_ms", "p99_ms")
        )
        rows.append(f"| {name} | {probe['rate']:.0f} | {cells} | {probe['failed']} |")
    return [*rows, "", f"{found['photographs_per_second']:.0f} photographs a second meanwhile."]


def floods() -> list[str]:
    found = result("floods")
    by_flood: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found["floods"]:
        by_flood.setdefault((one["port"], one["flood"]), {})[one["from"]] = one
    rows = [
        "| port | flood | peak memory | least answered, attack from other addresses "
        "| from its own |",
        "|---|---|---|---|---|",
    ]
    for (port, name), origins in by_flood.items():
        memory = max(one["memory_mib"]["peak"] for one in origins.values())
        cells = []
        for origin in ("others", "same"):
            kept = origins[origin]["kept_connection"]
            kind, answers = min(kept.items(), key=lambda pair: pair[1]["answered"])
            share = percent(answers["answered"])
            cells.append(share if answers["answered"] >= 0.99 else f"**{share}** ({kind})")
        shown = f"{memory:.0f} MiB" if memory <= 300 else f"**{memory:.0f} MiB**"
        rows.append(f"| {port} | {name} | {shown} | {' | '.join(cells)} |")
    return rows


def stages() -> list[str]:
    columns = [
        (f"{protocol}, {clients} client{'s' if clients != '1' else ''}", one)
        for protocol, found in result("stages")["protocols"].items()
        for clients, one in found.items()
    ]
    rows = [
        "| ms of a request | " + " | ".join(name for name, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for stage in columns[0][1]["ms"]:
        cells = " | ".join(f"{one['ms'][stage]:.3f}" for _, one in columns)
        rows.append(f"| {stage} | {cells} |")
    answered = " | ".join(f"{one['per_second']:,.0f}" for _, one in columns)
    return [*rows, f"| requests a second | {answered} |"]


def growth() -> list[str]:
    found = result("growth")
    costs = found["cost"]
    return [
        "| plugins | " + " | ".join(costs) + " |",
        "|---|" + "---|" * len(costs),
        "| mean ÷ bare | "
        + " | ".join(f"{c['mean_over_bare']:.2f}" for c in costs.values())
        + " |",
        "| p50 ÷ bare | " + " | ".join(f"{c['p50_over_bare']:.2f}" for c in costs.values()) + " |",
    ]


def overload() -> list[str]:
    found = result("overload")
    offered, ratios = found["offered"], found["ratios"]
    return [
        "| | |",
        "|---|---|",
        f"| offered | {offered['factor']:.0f} times the best rate "
        f"({found['best_throughput']:.0f}/s) for {offered['seconds']:.0f} s, "
        f"{offered['sent']:,} requests |",
        f"| answered, of the best rate | {percent(ratios['throughput_over_best'])} |",
        f"| p99 of those, of twice the unloaded p99 and {found['max_wait_seconds']:g} s | "
        f"{ratios['accepted_p99_over_bound']:.2f} ({found['accepted']['p99_ms']:.0f} ms; "
        f"unloaded {found['unloaded']['p99_ms']:.0f} ms) |",
        f"| refused within | p50 {found['refused']['p50_ms']:.1f} ms, p99 "
        f"{found['refused']['p99_ms']:.1f} ms |",
        "| statuses | "
        + ", ".join(f"{key} {value:,}" for key, value in sorted(found["statuses"].items()))
        + " |",
    ]


def sidecar() -> list[str]:
    rows = [
        "| server | clients | bare p50 | guarded p50 | added | guarded ÷ bare, requests a second |",
        "|---|---|---|---|---|---|",
    ]
    every = result("sidecar")["clients"]
    for name, one in every.items():
        for clients, found in one.items():
            rows.append(
                f"| {name} | {clients} | {found['bare']['p50_ms']:.2f} ms | "
                f"{found['guarded']['p50_ms']:.2f} ms | {found['added_p50_ms']:.2f} ms | "
                f"{found['guarded_over_bare_per_second']:.2f} |"
            )
    stages = next(iter(every.values()))["1"]["stages_ms"]
    rows += [
        "",
        "| mean ms, one client | " + " | ".join(every) + " |",
        "|---|" + "---|" * len(every),
    ]
    for stage in stages:
        cells = " | ".join(f"{one['1']['stages_ms'][stage]:.2f}" for one in every.values())
        rows.append(f"| {stage} | {cells} |")
    return rows


def sidecar_photographs() -> list[str]:
    rows = [
        "| server | clients | bare p50 | guarded p50 | ratio | guarded ÷ bare, requests a second |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in result("sidecar", "photographs.json")["clients"].items():
        for clients, found in one.items():
            rows.append(
                f"| {name} | {clients} | {found['bare']['p50_ms']:.1f} ms | "
                f"{found['guarded']['p50_ms']:.1f} ms | {found['guarded_over_bare_p50']:.2f} | "
                f"{found['guarded_over_bare_per_second']:.2f} |"
            )
    return rows


def first_day() -> list[str]:
    found = result("first-day")
    told, evaluation = found["told"], found["told"]["evaluation"]
    rows = [
        f"`firewall guard {told['source']} photos/ {' '.join(found['flags'])} --out guard` with "
        f"{found['images']} photographs: {found['command_seconds'] / 60:.1f} minutes; "
        f"{found['seconds_to_an_answer'] / 60:.1f} until a server has answered. Attacked were "
        f"{evaluation['n']} images within {255 * evaluation['threat_model']['radius']:.0f}/255, "
        f"{evaluation['effort']['steps']} steps, {evaluation['effort']['queries']} queries, at "
        f"{percent(told['false_positive_rate'])} promised false positives:",
        "",
        "| attack | knowledge | fools the classifier | gets past the guard | 95 % |",
        "|---|---|---|---|---|",
    ]
    for one in evaluation["attacks"]:
        rows.append(
            f"| {one['name']} | {one['knowledge']} | {percent(one['fooled_bare_rate'])} | "
            f"{percent(one['success_rate'])} | {interval(one['success_interval'])} |"
        )
    return rows


def real_models() -> list[str]:
    rows = [
        "| file | opset | MB | what happens | answers differ by | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for one in result("real-models")["files"]:
        differ = one.get("answers_differ_by")
        what = "works" if one["works"] else f"refused: {one['refused'].removeprefix('firewall: ')}"
        rows.append(
            f"| {one['file'].removesuffix('.onnx')} | {one['opset']} | {one['megabytes']:.0f} | "
            f"{what.replace('|', ' ')} | {'' if differ is None else f'{differ:.2g}'} | "
            f"{one['guard_seconds']:.0f} |"
        )
    return rows


def fuzz() -> list[str]:
    rows = ["| target | seconds | inputs run | findings |", "|---|---|---|---|"]
    for path in sorted((ROOT / "benchmarks" / "results" / "fuzz").glob("*.json")):
        one = result("fuzz", path.name)
        rows.append(
            f"| {path.stem} | {one['seconds']} | {one['number_of_executed_units']:,} | "
            f"{'none' if one['exit'] == 0 else 'one'} |"
        )
    return rows


TABLES: dict[str, Callable[[], list[str]]] = {
    "fuzz": fuzz,
    "floods": floods,
    "generated-arms": generated_arms,
    "generated-scores": generated_scores,
    "translation-looks": translation_looks,
    "translation-denoisers": translation_denoisers,
    "overload": overload,
    "sidecar": sidecar,
    "sidecar-photographs": sidecar_photographs,
    "first-day": first_day,
    "real-models": real_models,
    "benign": benign,
    "forgeries": forgeries,
    "unseen": unseen,
    "witness": witness,
    "latency": latency,
    "timing": timing,
    "suite": suite,
    "masking": masking,
    "attack-speed": speed,
    "one-forgery": one_forgery,
    "recipes": recipe_runs,
    "class-promise": class_promise,
    "recipe-detection": recipe_detection,
    "gan-losses": gan_losses,
    "choices": choices,
    "query-attacks": query_attacks,
    "faults": faults,
    "time-to-robustness": time_to_robustness,
    "stages": stages,
    "serving-brief": serving_brief,
    "serving-ratios": serving_ratios,
    "serving-small": partial(serving, "small"),
    "serving-image": partial(serving, "image"),
    "health": health,
    "growth": growth,
}


def render(text: str) -> str:
    """Render the tables of a page anew."""

    def block(match: re.Match[str]) -> str:
        try:
            rows = TABLES[match[2]]()
        except FileNotFoundError:
            rows = _NOT_MEASURED
        return match[1] + "\n".join(rows) + "\n" + match[3]

    return _BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args()
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.name}: {'stale' if arguments.check else 'written'}", file=sys.stderr)
        if not arguments.check:
            page.write_text(render(page.read_text()))
    if stale and arguments.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
