"""Writes src/ir/ops_table.rs from the operator schemas of the installed `onnx` package.

    python tools/gen_ops_table.py > src/ir/ops_table.rs
"""

import onnx
from onnx import defs

VARIADIC = 255
LIMIT = 2**31 - 1
WIDTH = 120

table = {}
for schema in defs.get_all_schemas_with_history():
    if schema.domain == "":
        table.setdefault(schema.name, []).append(schema)


def entry(s):
    most = lambda n: VARIADIC if n == LIMIT else n
    flag = "d" if s.deprecated else "s"
    return f"{flag}({s.since_version}, {s.min_input}, {most(s.max_input)}, {s.min_output}, {most(s.max_output)})"


print("//! Made by `tools/gen_ops_table.py`; do not edit.")
print()
print("use super::{OpSchema, d, s};")
print()
print(f"/// The newest operator set the table knows (onnx {onnx.__version__}).")
print(f"pub(super) const NEWEST: i64 = {max(s.since_version for v in table.values() for s in v)};")
print()
print("/// Sorted by name; versions of one operator oldest first.")
print("#[rustfmt::skip]")
print("pub(super) const OPS: &[(&str, &[OpSchema])] = &[")
for name in sorted(table):
    entries = [entry(s) for s in sorted(table[name], key=lambda s: s.since_version)]
    line = f'    ("{name}", &['
    for i, e in enumerate(entries):
        last = i + 1 == len(entries)
        piece = e + ("])," if last else ", ")
        if len(line) + len(piece.rstrip()) > WIDTH:
            print(line.rstrip())
            line = " " * 8
        line += piece
    print(line)
print("];")
