"""Export a diffusers folder as ONNX graphs without weights, with a fixed layout for the weights, and check them.

python export_graphs.py MODEL OUT [--architecture NAME] [--random-weights]
    OUT gets text_encoder.onnx, unet.onnx, vae_decoder.onnx, vae_encoder.onnx and graph.json. Each parameter is an
    initializer with the name and shape it has in the safetensors file, and points into "weights.data": float32, sorted
    by name, each at a multiple of 64 bytes. That file exists only in memory, where the worker fills it.
    With --random-weights MODEL needs no weights, only its config.json files.

python export_graphs.py MODEL OUT --optimum
    OUT gets a standard Optimum folder instead: <component>/model.onnx with the weights inside, int64 timestep [1].
"""

import argparse
import gc
import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript.optimizer
import torch
from onnx import helper
from safetensors import safe_open
from torch.export import Dim
from transformers import CLIPTextConfig, CLIPTextModel

from graph_parts import COMPONENTS, TEXT_FIELDS, UNET_FIELDS, VAE_FIELDS, Component, TextEncoder, UNet, unet_examples
from lone_rows import twin_rows

OPSET = 18
ALIGNMENT = 64
WEIGHTS_FILE = "weights.data"


def read_config(model: Path, component: Component) -> dict:
    """Read the component's config.json."""
    return json.loads((model / component.role / "config.json").read_text())


def class_defaults(kind: type) -> dict:
    """Return the values that a field missing from config.json stands for."""
    kind = CLIPTextConfig if kind is CLIPTextModel else kind
    if kind is CLIPTextConfig:
        defaults = CLIPTextConfig().to_dict()
    else:
        parameters = inspect.signature(kind.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps({k: v for k, v in defaults.items() if k in TEXT_FIELDS + UNET_FIELDS + VAE_FIELDS}))


def load_module(model: Path, component: Component, random_weights: bool) -> torch.nn.Module:
    """Load the part of the model that the component reads, in float32."""
    folder = model / component.role
    if not random_weights:
        module = component.kind.from_pretrained(folder, torch_dtype=torch.float32)
    elif component.kind is CLIPTextModel:
        module = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    else:
        module = component.kind.from_config(read_config(model, component))
    if random_weights:
        scatter_vectors(module)
    if component.kind is CLIPTextModel:
        module.set_attn_implementation("eager")
    return module.float().eval()


def scatter_vectors(module: torch.nn.Module) -> None:
    """Make all biases and norms different, so that the check would see two of them swapped."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter += 0.1 * torch.randn_like(parameter)


def parameter_name(component: Component, name: str) -> str:
    """Return the key in the safetensors file of a parameter of the wrapper."""
    name = name.removeprefix("model.")
    if component.kind is CLIPTextModel and not name.startswith("text_model."):
        name = f"text_model.{name}"
    return name


def dynamic_shapes(component: Component) -> dict:
    """Every named axis of the inputs, left to torch to relate."""
    return {
        name: {axis: Dim.DYNAMIC for axis, label in enumerate(labels) if label}
        for name, labels in component.inputs.items()
    }


def plain_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """Attention in four plain operators, with the scale as a constant."""
    scale = scale or query.shape[-1] ** -0.5
    scores = (query * scale) @ key.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


def export(component: Component, wrapper: torch.nn.Module, example: tuple, optimize: bool = False) -> onnx_ir.Model:
    """Run the exporter; without optimisation every parameter keeps its torch name and shape."""
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", plain_attention):
        program = torch.onnx.export(
            wrapper,
            example,
            input_names=list(component.inputs),
            output_names=list(component.outputs),
            dynamic_shapes=dynamic_shapes(component),
            opset_version=OPSET,
            dynamo=True,
            optimize=optimize,
            verbose=False,
        )
    return program.model


def name_axes(graph: onnx.GraphProto, component: Component) -> None:
    """Give the dynamic axes of inputs and outputs the names that callers know; an input axis must be dynamic."""
    labels = {**component.inputs, **component.outputs}
    for value in [*graph.input, *graph.output]:
        for axis, label in enumerate(labels[value.name]):
            dimension = value.type.tensor_type.shape.dim[axis]
            is_input = value.name in component.inputs
            if label and is_input and dimension.HasField("dim_value"):
                raise SystemExit(f"{component.name}: axis {label} of {value.name} was fixed to {dimension.dim_value}")
            if label:
                same_size = is_input or component.name == "unet" or label in ("batch", "sequence")
                dimension.dim_param = label if same_size else f"{value.name}_{label}"


def strip(model: onnx.ModelProto) -> None:
    """Remove what no runtime reads."""
    graph = model.graph
    model.doc_string = ""
    model.producer_version = ""
    del model.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = ""
    for node in graph.node:
        node.doc_string = ""
        node.name = ""
        del node.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]


def detach_weights(model: onnx_ir.Model, component: Component, shapes: dict[str, list[int]]) -> list[dict]:
    """Point every parameter into the weights file and return the layout; constants stay inside."""
    values = {parameter_name(component, name): value for name, value in model.graph.initializers.items()}
    if missing := sorted(shapes.keys() - values.keys()):
        raise SystemExit(f"{component.name}: {len(missing)} parameters are not initializers: {missing[:5]}")
    layout = []
    offset = 0
    for name in sorted(shapes):
        value = values[name]
        shape, kind = list(value.const_value.shape.numpy()), value.const_value.dtype
        if shape != shapes[name] or kind != onnx_ir.DataType.FLOAT:
            raise SystemExit(f"{component.name}: {name} has shape {shape}, the weights {shapes[name]}")
        length = 4 * int(np.prod(shape))
        value.name = name
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE, offset, length, kind, shape=onnx_ir.Shape(shape), name=name
        )
        layout.append({"name": name, "shape": shape, "offset": offset})
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    return layout


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop needless nodes; the parameters pose as inputs meanwhile, so none of them is touched."""
    graph = model.graph
    inputs = [value.name for value in graph.input]
    parameters = [tensor for tensor in graph.initializer if tensor.external_data]
    constants = [tensor for tensor in graph.initializer if not tensor.external_data]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in parameters)
    model = onnxscript.optimizer.optimize(model, num_iterations=4, stop_if_no_change=False)
    graph = model.graph
    kept = [value for value in graph.input if value.name in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    constants = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend([*constants, *parameters])
    return model


def layout_bytes(layout: list[dict]) -> int:
    """Return the size of the weights buffer."""
    last = layout[-1]
    end = last["offset"] + 4 * int(np.prod(last["shape"]))
    return -(-end // ALIGNMENT) * ALIGNMENT


def read_weights(model: Path, component: Component) -> Callable[[str], np.ndarray]:
    """Open the component's safetensors file and return a reader of float32 tensors."""
    [path] = sorted((model / component.role).glob("*.safetensors"))
    file = safe_open(path, "pt")
    return lambda name: file.get_tensor(name).float().numpy()


def module_weights(component: Component, wrapper: torch.nn.Module) -> Callable[[str], np.ndarray]:
    """Read tensors from a module instead of a file."""
    tensors = {parameter_name(component, k): v for k, v in wrapper.named_parameters()}
    return lambda name: tensors[name].detach().numpy()


def fill_buffer(layout: list[dict], read: Callable[[str], np.ndarray]) -> bytes:
    """Do what the worker does: fill one buffer by the layout."""
    buffer = np.zeros(layout_bytes(layout) // 4, np.float32)
    for tensor in layout:
        values = read(tensor["name"])
        if list(values.shape) != tensor["shape"]:
            raise SystemExit(f"{tensor['name']}: the file says {values.shape}, the graph {tensor['shape']}")
        start = tensor["offset"] // 4
        buffer[start : start + values.size] = values.reshape(-1)
    return buffer.tobytes()


def open_session(graph: bytes | str, buffer: bytes | None = None) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime, with its weights in memory, which must outlive the session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if buffer is not None:
        options.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [buffer], [len(buffer)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_torch(wrapper: torch.nn.Module, example: tuple) -> list[np.ndarray]:
    """Return all outputs of a module."""
    outputs = wrapper(*example)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output.numpy() for output in outputs]


def check(component: Component, session, examples: list[tuple], expected: list[list[np.ndarray]]) -> None:
    """Compare the runtime with torch at every example's shape."""
    names = [value.name for value in session.get_inputs()]
    for example, outputs in zip(examples, expected, strict=True):
        actual = session.run(None, dict(zip(names, (tensor.numpy() for tensor in example), strict=True)))
        difference = max(float(np.abs(e - a).max()) for e, a in zip(outputs, actual, strict=True))
        largest = max(float(np.abs(e).max()) for e in outputs)
        shape = "x".join(str(size) for size in example[0].shape)
        print(f"{component.name}: {shape} differs by {difference:.1e} (largest value {largest:.2g})", flush=True)
        if not difference <= component.tolerance * max(1.0, largest):
            raise SystemExit(f"{component.name}: differs by more than {component.tolerance:.0e}")


def export_graph(component: Component, model: Path, out: Path, random_weights: bool) -> dict:
    """Export one component without weights, check it, and return its entry in graph.json."""
    config = read_config(model, component)
    wrapper = component.wrapper(load_module(model, component, random_weights))
    examples = component.examples(config)
    exported = export(component, wrapper, examples[0])
    shapes = {parameter_name(component, k): list(v.shape) for k, v in wrapper.named_parameters()}
    read = module_weights(component, wrapper) if random_weights else read_weights(model, component)
    layout = detach_weights(exported, component, shapes)
    proto = simplify(onnx_ir.to_proto(exported))
    del exported
    strip(proto)
    name_axes(proto.graph, component)
    if component.name == "unet":
        twin_rows(proto.graph)
    print(f"{component.name}: {len(layout)} parameters, {len(proto.graph.node)} nodes, {proto.ByteSize()} bytes")
    graph = proto.SerializeToString(deterministic=True)
    (out / f"{component.name}.onnx").write_bytes(graph)
    expected = [run_torch(wrapper, example) for example in examples]
    buffer = fill_buffer(layout, read)
    del proto, read, wrapper
    gc.collect()
    check(component, open_session(graph, buffer), examples, expected)
    return describe(component, config, layout)


def describe(component: Component, config: dict, layout: list[dict]) -> dict:
    """Return the component's entry in graph.json."""
    defaults = class_defaults(component.kind)
    values = {field: config.get(field, defaults.get(field)) for field in component.fields}
    return {
        "graph": f"{component.name}.onnx",
        "role": component.role,
        "class": component.kind.__name__,
        "config": {k: v for k, v in values.items() if v != defaults.get(k)},
        "config_defaults": {k: v for k, v in values.items() if v == defaults.get(k)},
        "inputs": list(component.inputs),
        "outputs": list(component.outputs),
        "bytes": layout_bytes(layout),
        "tensors": layout,
    }


def write_index(path: Path, architecture: str, entries: dict[str, dict]) -> None:
    """Write graph.json with one tensor a line."""
    lines = ['{"format":1,', f'"architecture":{json.dumps(architecture)},', f'"family":"sd","opset":{OPSET},']
    lines.append('"components":{')
    for position, (name, entry) in enumerate(entries.items()):
        lines.append(f'"{name}":{{')
        for key, value in entry.items():
            if key != "tensors":
                lines.append(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))},")
        tensors = ",\n".join(json.dumps(tensor, separators=(",", ":")) for tensor in entry["tensors"])
        lines.append('"tensors":[')
        lines.append(tensors)
        lines.append("]}" + ("," if position + 1 < len(entries) else ""))
    lines.append("}}")
    path.write_text("\n".join(lines) + "\n")
    json.loads(path.read_text())


def export_graphs(model: Path, out: Path, architecture: str, random_weights: bool) -> None:
    """Export all components, one in memory at a time."""
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for component in COMPONENTS:
        entries[component.name] = export_graph(component, model, out, random_weights)
        gc.collect()
    write_index(out / "graph.json", architecture, entries)


class OptimumTextEncoder(TextEncoder):
    """The outputs that Optimum's layout has."""

    def forward(self, input_ids):
        """Return the normalised last state and the last state at the end token."""
        last, _, pooled = super().forward(input_ids)
        return last, pooled


class OptimumUNet(UNet):
    """One timestep for the whole batch, as a whole number."""

    def forward(self, sample, timestep, encoder_hidden_states):
        """Return the model's output for noisy latents."""
        return super().forward(sample, timestep.expand(sample.shape[0]), encoder_hidden_states)


def one_step_examples(config: dict) -> list[tuple[torch.Tensor, ...]]:
    """Latents of several shapes, each with one timestep as a whole number."""
    return [(sample, timestep[:1].long(), states) for sample, timestep, states in unet_examples(config)]


def optimum_component(component: Component) -> Component:
    """Give the component the inputs and outputs of Optimum's layout."""
    if component.name == "text_encoder":
        outputs = {k: v for k, v in component.outputs.items() if k != "penultimate_state"}
        return replace(component, wrapper=OptimumTextEncoder, outputs=outputs)
    if component.name == "unet":
        inputs = {**component.inputs, "timestep": (None,)}
        return replace(component, wrapper=OptimumUNet, inputs=inputs, examples=one_step_examples)
    return component


def optimum_index(model: Path) -> dict:
    """Return the folder's model_index.json as Optimum writes it."""
    index = json.loads((model / "model_index.json").read_text())
    del index["vae"]
    library = "optimum.onnxruntime.modeling_diffusion"
    classes = {
        "text_encoder": "ORTModelTextEncoder",
        "unet": "ORTModelUnet",
        "vae_decoder": "ORTModelVaeDecoder",
        "vae_encoder": "ORTModelVaeEncoder",
    }
    index["_class_name"] = "ORTStableDiffusionPipeline"
    index.update({name: [library, kind] for name, kind in classes.items()})
    return index


def export_optimum(model: Path, out: Path) -> None:
    """Write a folder in Optimum's layout and check it."""
    for component in map(optimum_component, COMPONENTS):
        folder = out / component.name
        folder.mkdir(parents=True, exist_ok=True)
        wrapper = component.wrapper(load_module(model, component, random_weights=False))
        examples = component.examples(read_config(model, component))
        proto = onnx_ir.to_proto(export(component, wrapper, examples[0], optimize=True))
        strip(proto)
        name_axes(proto.graph, component)
        onnx.save(proto, folder / "model.onnx")
        shutil.copyfile(model / component.role / "config.json", folder / "config.json")
        del proto
        expected = [run_torch(wrapper, example) for example in examples]
        check(component, open_session(str(folder / "model.onnx")), examples, expected)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(model / name, out / name, dirs_exist_ok=True)
    (out / "model_index.json").write_text(json.dumps(optimum_index(model), indent=2) + "\n")


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", help="the name in graph.json; the last part of OUT by default")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--optimum", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        if arguments.optimum:
            export_optimum(arguments.model, arguments.out)
        else:
            architecture = arguments.architecture or arguments.out.name
            export_graphs(arguments.model, arguments.out, architecture, arguments.random_weights)


if __name__ == "__main__":
    main()
