"""The objective beside its peers, on the same tensors in one run: time, peak memory, gradient error, floor.

    python benchmarks/loss.py --device cpu            # H 1,024, V 32,768, N 1,024, bf16
    python benchmarks/loss.py --device cuda           # H 2,048, V 151,936, N 8,192, bf16
    python benchmarks/loss.py --device cpu --add      # more rounds into the same results file
    python benchmarks/loss.py --tables                # Markdown of every committed result

Peers come with `pip install -e '.[bench]'` (TRL) and `liger-kernel` (its fused JSD needs Triton and a GPU, its chunked
loss does not); one that is missing is left out, and the result says why. Results: `benchmarks/results/loss-*.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # store.py is there

from salad.objective import CHUNK_ROWS, HEAD_TILE, distillation_loss  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZES = {"cpu": {"h": 1024, "v": 32768, "n": 1024}, "cuda": {"h": 2048, "v": 151_936, "n": 8192}}
TILE = {"cpu": 2048, "cuda": 1024}  # ids at a time in the low-memory mode
HEADS, SHARES = ("frozen", "trainable"), (1.0, 0.25)


# The contenders: f(student_hidden, student_head, teacher_hidden, teacher_head, targets) -> loss; targets < 0 carry none


def contenders(device: str, use: set[str] | None) -> tuple[dict, dict]:
    by_name, missing = {}, {}

    def plain(hs, ws, ht, wt, y):
        kept = y >= 0
        log_p = F.log_softmax((hs[kept] @ ws.t()).float(), dim=1)
        with torch.no_grad():
            log_q = F.log_softmax((ht[kept] @ wt.t()).float(), dim=1)
        return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")

    by_name["salad"] = lambda *a: distillation_loss(*a).loss
    by_name["salad, low memory"] = lambda *a: distillation_loss(*a, vocab_tile=TILE[device]).loss
    by_name["salad, compiled"] = lambda *a: distillation_loss(*a, compile=True).loss
    by_name["plain torch"] = plain
    try:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        by_name["TRL"] = lambda hs, ws, ht, wt, y: _chunked_divergence_loss(hs[None], ht[None], ws, wt, (y >= 0)[None], 0.0)[0]
    except ImportError as error:
        missing["TRL"] = f"import failed: {error}"
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=device == "cuda")
        by_name["Liger chunked"] = lambda hs, ws, ht, wt, y: loss(hs, ws, ht, wt, y)
    except ImportError as error:
        missing["Liger chunked"] = f"import failed: {error}"
    try:
        if device != "cuda":
            raise ImportError("a Triton kernel, GPU only")
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        jsd = LigerFusedLinearJSD(jsd_beta=0.0)
        by_name["Liger fused JSD"] = lambda hs, ws, ht, wt, y: jsd(hs, ws, ht, wt, y)
    except ImportError as error:
        missing["Liger fused JSD"] = str(error)
    return {k: f for k, f in by_name.items() if not use or k in use or k == "salad"}, missing


def floor(hs, ws, ht, wt, y, head: str):
    """The matrix products alone, at the types and chunks of `salad`, into buffers made once; returns a function."""
    rows, device = int((y >= 0).sum()), hs.device.type
    size = min(rows, CHUNK_ROWS[device])
    hs, ht = hs.detach()[:rows], ht[:rows]
    p, q = (torch.empty(size, len(ws), device=device) for _ in range(2))
    gradient = torch.randn(size, len(ws), device=device)
    narrow = gradient.bfloat16()
    sums = torch.zeros(ws.shape, device=device) if head == "trainable" else None
    ws = ws.detach()
    wide = ws.float() if device == "cpu" else None
    item = rows <= size
    out = torch.empty_like(ws) if item and sums is not None else None
    setting = torch.backends.mkldnn.matmul

    def run():
        for a in range(0, rows, size):
            s, t = hs[a : a + size], ht[a : a + size]
            if device == "cpu":  # float32 results from bf16 factors, as salad.objective
                s_wide, t_wide = s.float(), t.float()
                before, setting.fp32_precision = setting.fp32_precision, "bf16"
                torch.mm(s_wide, wide.t(), out=p[: len(s)])
                torch.mm(t_wide, wide.t(), out=q[: len(s)])
                if sums is not None and not item:
                    sums.addmm_(gradient[: len(s)].t(), s_wide)
                setting.fp32_precision = before
            else:
                torch.mm(s, ws.t(), out_dtype=torch.float32, out=p[: len(s)])
                torch.mm(t, wt.t(), out_dtype=torch.float32, out=q[: len(s)])
                if sums is not None and not item:
                    torch.addmm(sums, narrow[: len(s)].t(), s, out_dtype=torch.float32, out=sums)
            torch.mm(narrow[: len(s)], ws)
            if out is not None:
                torch.mm(narrow[: len(s)].t(), s, out=out)

    return run


def formula_bytes(device: str, size: dict, share: float, trainable: bool) -> int:
    """What the docstring of `distillation_loss` states, for bf16 inputs and H = G."""
    n, h, v = size["n"], size["h"], size["v"]
    kept = round(n * share)
    peak = 12 * min(kept, CHUNK_ROWS[device]) * v + 2 * n * h
    if device == "cpu":
        peak += 4 * min(v, HEAD_TILE) * h
    if trainable:
        peak += (2 if kept <= CHUNK_ROWS[device] else 6) * v * h
    return peak


# Tensors, gradient errors


def tensors(device: str, n: int, h: int, v: int, kl: float, seed: int = 0):
    """bf16 hidden states and heads whose mean KL is near `kl`, logits spread over several nats."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(device)

    wt = (normal(v, h) / h**0.5).bfloat16()
    ws = (wt.float() + normal(v, h) * min(0.02, kl) / h**0.5).bfloat16()
    ht, noise = (normal(n, h) * 3.0).bfloat16(), normal(n, h)
    targets = torch.randint(0, v, (n,), generator=g).to(device)
    low, high, some = 0.0, 8.0, slice(0, min(n, 128))
    for _ in range(12):
        middle = (low + high) / 2
        log_p = F.log_softmax((ht[some].float() + noise[some] * middle).bfloat16().float() @ ws.float().t(), 1)
        log_q = F.log_softmax(ht[some].float() @ wt.float().t(), 1)
        d = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean").item()
        low, high = (middle, high) if d < kl else (low, middle)
    return (ht.float() + noise * middle).bfloat16(), ws, ht, wt, targets


def exact_gradients(hs, ws, ht, wt):
    """Mean KL and its gradients for the student's hidden states and head, in float64, by rows."""
    n, total = len(hs), 0.0
    ws64, wt64 = ws.double(), wt.double()
    grad_h, grad_w = torch.empty(hs.shape, dtype=torch.float64, device=hs.device), torch.zeros_like(ws64)
    for a in range(0, n, 128):
        h = hs[a : a + 128].double()
        log_p = F.log_softmax(h @ ws64.t(), 1)
        log_q = F.log_softmax(ht[a : a + 128].double() @ wt64.t(), 1)
        total += F.kl_div(log_p, log_q, log_target=True, reduction="sum").item()
        gradient = (log_p.exp() - log_q.exp()) / n
        grad_h[a : a + 128] = gradient @ ws64
        grad_w.addmm_(gradient.t(), h)
    return total / n, grad_h, grad_w


def errors(result: dict, device: str, n: int, h: int, v: int) -> dict:
    """Per contender and KL: Frobenius error of both gradients, and the rows' 99th percentile, against float64."""
    out = {}
    for kl in (0.01, 3.0):
        hs, ws, ht, wt, y = tensors(device, n, h, v, kl, seed=1)
        value, exact_h, exact_w = exact_gradients(hs, ws, ht, wt)
        for name, f in result.items():
            a, b = hs.clone().requires_grad_(), ws.clone().requires_grad_()
            f(a, b, ht, wt, y).backward()
            off = a.grad.double() - exact_h
            rows = off.norm(dim=1) / exact_h.norm(dim=1)
            out.setdefault(name, {})[f"kl {kl}"] = {
                "kl": value,
                "hidden": (off.norm() / exact_h.norm()).item(),
                "hidden_rows_p99": rows.quantile(0.99).item(),
                "head": ((b.grad.double() - exact_w).norm() / exact_w.norm()).item(),
            }
    return out


# Time and memory


def seconds(run, device: str) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of all threads, which a busy machine disturbs less."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def peak_bytes(run, device: str) -> int | None:
    """Most bytes above those held before: the allocator's count on CUDA, the process's resident memory on Linux."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if platform.system() != "Linux":
        return None

    def status(field):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def steps(result: dict, data, share: float, head: str) -> dict:
    hs, ws, ht, wt, y = data
    hs, ws = hs.clone().requires_grad_(), ws.clone().requires_grad_(head == "trainable")
    y = torch.where(torch.arange(len(y), device=y.device) % round(1 / share) == 0, y, -100)

    def step(f):
        def run():
            hs.grad = ws.grad = None
            f(hs, ws, ht, wt, y).backward()

        def clear():
            hs.grad = ws.grad = None

        return run, clear

    return {name: step(f) for name, f in result.items()} | {"floor": (floor(hs, ws, ht, wt, y, head), lambda: None)}


def measure(args) -> None:
    size = SIZES[args.device] | {k: x for k in "hvn" if (x := getattr(args, k))}
    results, missing = contenders(args.device, set(args.only or ()))
    hardware = hardware_name(args.device)
    path = RESULTS / f"loss-{args.device}-{hardware['slug']}.json"
    old = json.loads(path.read_text()) if args.add and path.exists() else {}
    result = {
        "command": f"python benchmarks/loss.py --device {args.device}",
        "device": args.device, "hardware": hardware["name"], "threads": torch.get_num_threads(),
        "torch": torch.__version__, "size": size, "dtype": "bfloat16", "missing": missing,
        "load_average": [*old.get("load_average", []), os.getloadavg()[0]], "cases": old.get("cases", {}),
    }  # fmt: skip
    if old and old["size"] != size:
        raise SystemExit(f"{path} was measured at {old['size']}; leave --add out to replace it")
    result["errors"] = old.get("errors") or errors(results, args.device, min(size["n"], args.error_rows), size["h"], size["v"])
    data = tensors(args.device, size["n"], size["h"], size["v"], 0.3)
    for head in HEADS:
        runs = {}
        for share in SHARES:
            case = result["cases"].setdefault(f"{head}, text share {share:g}", {})
            case["formula_bytes"] = formula_bytes(args.device, size, share, head == "trainable")
            for name, (run, clear) in steps(results, data, share, head).items():
                run()  # warm
                clear()
                row = case.setdefault(name, {"seconds": [], "cpu_seconds": []})
                row["peak_bytes"] = peak_bytes(run, args.device)
                clear()
                runs[share, name] = run, clear, row
        for _ in range(args.rounds):  # interleaved: what disturbs one disturbs all
            for run, clear, row in runs.values():
                wall, cpu = seconds(run, args.device)
                row["seconds"].append(round(wall, 5))
                row["cpu_seconds"].append(round(cpu, 5))
                clear()
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict) -> str:
    """Markdown, medians over the interleaved rounds; ratios are medians of the ratios within a round."""
    size = result["size"]
    lines = [
        f"**{result['hardware']}**, torch {result['torch']}, {result['threads']} threads, bf16, H {size['h']:,}, "
        f"V {size['v']:,}, N {size['n']:,}; `{result['command']}`; load average at the start "
        f"{', '.join(f'{x:.1f}' for x in result['load_average'])}.",
        "",
        "| head, text share | contender | ms median | ms p80 | × salad | share of the floor (by CPU time) | peak MiB | "
        "gradient error at KL 0.01 / 3 | rows p99 | gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, rows in result["cases"].items():
        rows = {k: x for k, x in rows.items() if isinstance(x, dict)}
        for name, row in rows.items():
            ms = sorted(1e3 * x for x in row["seconds"])
            ratio = of_rounds(row, rows["salad"])
            share, share_cpu = (of_rounds(rows["floor"], row, k) for k in ("seconds", "cpu_seconds"))
            which = "hidden" if case.startswith("frozen") else "head"
            error = result["errors"].get(name)
            outcome = ["–", "–", "–"]
            if error:
                low, high = error.values()
                worst = [max(x["hidden"], x[which]) for x in (low, high)]
                outcome = [
                    f"{100 * worst[0]:.2f} % / {100 * worst[1]:.2f} %",
                    f"{100 * low['hidden_rows_p99']:.2f} % / {100 * high['hidden_rows_p99']:.2f} %",
                    "passes" if max(worst) <= 0.01 else "**fails**",
                ]
            peak = "–" if name == "floor" or row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
            lines.append(
                f"| {case} | {name} | {statistics.median(ms):.0f} | {ms[math.ceil(0.8 * len(ms)) - 1]:.0f} | "
                f"{ratio:.2f} | {100 * share:.0f} % ({100 * share_cpu:.0f} %) | {peak} | {' | '.join(outcome)} |"
            )
    lines += ["", *(f"Left out: {name}: {why}." for name, why in result["missing"].items())]
    for case, rows in result["cases"].items():
        peak, expected_peak = rows["salad"]["peak_bytes"], rows["formula_bytes"]
        if peak is not None:
            lines.append(f"Peak of salad against its formula, {case}: {peak / 2**20:.0f} / {expected_peak / 2**20:.0f} MiB.")
    for head in ("frozen", "trainable"):
        some, whole = (result["cases"][f"{head}, text share {share:g}"]["salad"] for share in (0.25, 1.0))
        lines.append(
            f"Time of salad at text share ¼ over that at 1, {head}: {of_rounds(some, whole):.2f} "
            f"({of_rounds(some, whole, 'cpu_seconds'):.2f} by CPU time)."
        )
    return "\n".join(lines)


def of_rounds(a: dict, b: dict, key: str = "seconds") -> float:
    """The median over the rounds that both took part in of a's time by b's."""
    return statistics.median(x / y for x, y in zip(a[key], b[key], strict=False))


def hardware_name(device: str) -> dict:
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        if platform.system() == "Linux":
            completed = json.loads(subprocess.run(["lscpu", "-J"], capture_output=True, text=True, check=True).stdout)
            fields = {x["field"].rstrip(":"): x["data"] for x in completed["lscpu"]}
            name = f"{fields['Model name']}, family {fields.get('CPU family')} model {fields.get('Model')}"
            name += ", AMX" if "amx_bf16" in fields.get("Flags", "") else ""
        name += f", {os.cpu_count()} cores"
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.replace("(R)", "")).lower().split())
    return {"name": name, "slug": slug}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--error-rows", type=int, default=512, help="rows of the gradient error (float64 beside it)")
    parser.add_argument("--only", nargs="*", help="contenders to run beside salad; all by default")
    parser.add_argument("--add", action="store_true", help="add rounds to the results that are there")
    parser.add_argument("--tables", action="store_true", help="print the tables of the results that are there")
    for flag, name in (("--hidden", "h"), ("--vocabulary", "v"), ("--positions", "n")):
        parser.add_argument(flag, dest=name, type=int, help="another size")
    args = parser.parse_args()
    if args.tables:
        for path in sorted(RESULTS.glob("loss-*.json")):
            print(table(json.loads(path.read_text())), end="\n\n")
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/loss.py: no CUDA device here; the GPU figures stay 'not measured'")
    measure(args)


if __name__ == "__main__":
    main()
