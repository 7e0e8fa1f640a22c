"""Round-trips every model of the installed onnx package and compares what comes back.

    python tests/conformance.py PROGRAM [MODEL ...]

PROGRAM is the `roundtrip` example (cargo build --release --example roundtrip) or the fqvit-opt binary itself (then each
model is run with `--recipe none`). Without MODELs the conformance models inside the onnx package are used. For each
model the bytes must be equal; where the original was not encoded canonically, the decoded messages must be.
"""

import pathlib
import subprocess
import sys
import tempfile
import warnings

import onnx


def package_models(folder):
    """The models that lie in the package, and those of the operator tests, which it makes on demand."""
    from onnx.backend.test.case.node import collect_testcases

    yield from sorted((pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        path = folder / f"{case.name}.onnx"
        path.write_bytes(case.model.SerializeToString(deterministic=True))
        yield path


def run(program, pairs):
    """Yields (model, output, status, reason)."""
    if "roundtrip" in pathlib.Path(program).name:
        with tempfile.NamedTemporaryFile("w", suffix=".list") as f:
            f.write("".join(f"{a}\t{b}\n" for a, b in pairs))
            f.flush()
            out = subprocess.run([program, f.name], capture_output=True, text=True)
            if out.returncode != 0:
                sys.exit(f"{program} failed: {out.stderr}")
        lines = out.stdout.splitlines()
        assert len(lines) == len(pairs), (len(lines), len(pairs))
        for (a, b), line in zip(pairs, lines):
            status, _, reason = (line.split("\t", 2) + [""])[:3]
            yield a, b, status, reason
    else:
        for a, b in pairs:
            out = subprocess.run([program, a, "--recipe", "none", "-o", b], capture_output=True, text=True)
            yield a, b, "ok" if out.returncode == 0 else "error", out.stderr.strip()


def main():
    program = sys.argv[1]
    same = equal = 0
    bad = []
    with tempfile.TemporaryDirectory() as tmp:
        (pathlib.Path(tmp) / "cases").mkdir()
        models = [pathlib.Path(p) for p in sys.argv[2:]] or list(package_models(pathlib.Path(tmp) / "cases"))
        pairs = [(m, pathlib.Path(tmp) / f"{i}.onnx") for i, m in enumerate(models)]
        for a, b, status, reason in run(program, pairs):
            if status != "ok":
                bad.append((a, f"{status}: {reason}"))
                continue
            was, now = a.read_bytes(), b.read_bytes()
            if was == now:
                same += 1
                continue
            first, second = onnx.ModelProto.FromString(was), onnx.ModelProto.FromString(now)
            if first == second:
                equal += 1
                if first.SerializeToString(deterministic=True) == was:
                    bad.append((a, "canonical bytes changed"))
            else:
                bad.append((a, "decoded messages differ"))
    for a, reason in bad:
        print(f"FAIL {a}: {reason}")
    print(f"{len(models)} models: {same} byte for byte, {equal} equal when decoded, {len(bad)} failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
