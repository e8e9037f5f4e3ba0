"""Make the UNet's graphs compute the same for a sample alone as for one in a batch, to the last bit.

python lone_rows.py UNET.onnx...
    Changes the files in place; one that is changed already stays as it is.

A product with a single row goes through another kernel in most engines (a vector times a matrix), which adds up in
another order than that of several rows. In a UNet only the embedding of the timesteps has one row a sample: everything
else has a row for each token or pixel. So the graph computes those rows twice, one after the other, and takes the first
of each: with one sample there are two rows, as with two, and the numbers are the same.

Each such product becomes a MatMul with the transposed weights and an Add, as those of all other layers are: engines lay
a MatMul's constant out for its kernel once, when the graph is loaded, and a Gemm's at every run, which costs more than
the second row.
"""

import sys
from pathlib import Path

import onnx
from onnx import helper

ROWS = "timestep_rows_twice"


def twin_rows(graph: onnx.GraphProto) -> bool:
    """Compute the timesteps' rows twice. Gives whether anything was changed."""
    if any(ROWS in node.output for node in graph.node):
        return False
    products = rows_of_timesteps(graph)
    made = {name for node in products for name in node.output}
    first = [node for node in products if not ancestors(graph, node.input[0]) & made]
    if len({node.input[0] for node in first}) != 1:
        raise SystemExit(f"the timesteps come in at {len(first)} places, not at one")
    source = first[0].input[0]
    for node in first:
        node.input[0] = ROWS
    # What comes from a product and goes on with the samples leaves the second half behind.
    inner = {name for node in products for name in ancestors(graph, node.input[0])}
    leaving = [node.output[0] for node in products if node.output[0] not in inner]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.extend(with_constant_laid_out(node) if node in products else [node])
        if source in node.output:
            nodes.append(helper.make_node("Shape", ["timestep"], [f"{ROWS}_count"]))
            nodes.append(helper.make_node("Concat", [source, source], [ROWS], axis=0))
        for name in node.output:
            if name in leaving:
                nodes[-1].output[0] = f"{name}_twice"
                ends = [f"{ROWS}_zero", f"{ROWS}_count", f"{ROWS}_zero"]
                nodes.append(helper.make_node("Slice", [f"{name}_twice", *ends], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
    zero = helper.make_tensor(f"{ROWS}_zero", onnx.TensorProto.INT64, [1], [0])
    constants = [tensor for tensor in graph.initializer if not tensor.external_data]
    parameters = [tensor for tensor in graph.initializer if tensor.external_data]
    del graph.initializer[:]
    graph.initializer.extend(sorted([*constants, zero], key=lambda tensor: tensor.name))
    graph.initializer.extend(parameters)
    return True


def with_constant_laid_out(gemm: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A Gemm of rows, transposed weights and biases as three operators."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in gemm.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if len(gemm.input) != 3 or {**plain, "transB": 0, **attributes} != plain:
        raise SystemExit(f"a product of another form: {gemm}")
    rows, weights, biases = gemm.input
    [output] = gemm.output
    return [
        helper.make_node("Transpose", [weights], [f"{output}_weights"], perm=[1, 0]),
        helper.make_node("MatMul", [rows, f"{output}_weights"], [f"{output}_product"]),
        helper.make_node("Add", [f"{output}_product", biases], [output]),
    ]


def rows_of_timesteps(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products whose rows are the samples' timesteps: those that no sample's latents or texts go into."""
    return [
        node
        for node in graph.node
        if node.op_type == "Gemm" and not {"sample", "encoder_hidden_states"} & ancestors(graph, node.input[0])
    ]


def ancestors(graph: onnx.GraphProto, name: str) -> set[str]:
    """Everything that `name` is computed from, itself included."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    open_names = [name]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        if name in makers:
            open_names.extend(makers[name].input)
    return found


def main(paths: list[str]) -> None:
    """Change the graphs in these files."""
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        changed = twin_rows(model.graph)
        if changed:
            Path(path).write_bytes(model.SerializeToString(deterministic=True))
        print(path, "changed" if changed else "as it was")


if __name__ == "__main__":
    main(sys.argv[1:])
