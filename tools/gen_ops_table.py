"""Writes src/ir/ops_table.rs from the operator schemas of the installed `onnx` package.

    python tools/gen_ops_table.py > src/ir/ops_table.rs
"""

import onnx
from onnx import TensorProto, defs, helper

VARIADIC = 255
LIMIT = 2**31 - 1
WIDTH = 120
# A set of element types is a word: bit N stands for ONNX's type number N, the highest bit for everything that is no tensor.
OTHER = 1 << 31

table = {}
for schema in defs.get_all_schemas_with_history():
    if schema.domain == "":
        table.setdefault(schema.name, []).append(schema)


def bit(t):
    """`tensor(float)` and its kin."""
    name = t[len("tensor(") : -1].upper() if t.startswith("tensor(") else None
    return 1 << TensorProto.DataType.Value({"BOOL": "BOOL"}.get(name, name)) if name else OTHER


def words(s):
    """The set of types of each input and output, with the number of its type variable: 0 if it has none."""
    variables = {c.type_param_str: (i + 1, c.allowed_type_strs) for i, c in enumerate(s.type_constraints)}

    def word(p):
        number, names = variables.get(p.type_str, (0, [p.type_str]))
        mask = 0
        for n in names:
            mask |= bit(n)
        return (mask, number if p.is_homogeneous else 0)

    return [word(p) for p in s.inputs], [word(p) for p in s.outputs]


SETS = sorted({m for versions in table.values() for s in versions for side in words(s) for m, _ in side})


def entry(s):
    most = lambda n: VARIADIC if n == LIMIT else n
    flag = "d" if s.deprecated else "s"
    sides = ["&[" + ", ".join(f"({SETS.index(m)}, {n})" for m, n in side) + "]" for side in words(s)]
    attrs = "&[" + ", ".join(f'"{a}"' for a in sorted(s.attributes)) + "]"
    counts = f"{s.since_version}, {s.min_input}, {most(s.max_input)}, {s.min_output}, {most(s.max_output)}"
    return f"{flag}({counts}, {sides[0]}, {sides[1]}, {attrs})"


def opset_of(number):
    """The operator set that first casts to this element type."""
    return min(s.since_version for s in table["Cast"] if any(m >> number & 1 for m, _ in words(s)[1]))


def file_version(opset):
    return min(ir for _, ir, newest, *_ in helper.VERSION_TABLE if newest >= opset)


print("//! Made by `tools/gen_ops_table.py`; do not edit.")
print()
print("use super::{OpSchema, d, s};")
print()
print(f"/// The newest operator set the table knows (onnx {onnx.__version__}).")
print(f"pub(super) const NEWEST: i64 = {max(s.since_version for v in table.values() for s in v)};")
print()
print("/// Element types that older files can not hold: type, operator set, file version (IR).")
print("#[rustfmt::skip]")
newer = [(n, opset_of(n)) for n in sorted(TensorProto.DataType.values()) if n not in (TensorProto.UNDEFINED, TensorProto.COMPLEX64, TensorProto.COMPLEX128)]
newer = [f"({n}, {o}, {file_version(o)})" for n, o in newer if o > 13]
print(f"pub(super) const NEWER_TYPES: &[(i32, i64, i64)] = &[{', '.join(newer)}];")
print()
print("/// Newest operator set that files of a version (IR) may carry.")
print("#[rustfmt::skip]")
newest = {}
for _, ir, opset, *_ in helper.VERSION_TABLE:
    newest[ir] = max(opset, newest.get(ir, 0))
print(f"pub(super) const FILE_VERSIONS: &[(i64, i64)] = &[{', '.join(f'({ir}, {o})' for ir, o in sorted(newest.items()))}];")
print()
print("/// Sets of element types: bit N stands for type number N, the highest bit for what is no tensor.")
print("#[rustfmt::skip]")
print("pub(super) const SETS: &[u32] = &[")
line = "   "
for m in SETS:
    piece = f" 0x{m:x},"
    if len(line) + len(piece) > WIDTH:
        print(line)
        line = "   "
    line += piece
print(line)
print("];")
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
        if len(line) + len(piece.rstrip()) > WIDTH and line.strip():
            print(line.rstrip())
            line = " " * 8
        line += piece
    print(line)
print("];")
