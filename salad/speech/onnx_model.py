"""A voice's ONNX model as the TTS engines need it: with the durations of its phonemes as an output, and its noise as inputs.

Needs the extra `onnx` (onnxruntime and onnx, MIT and Apache-2.0). One thread a session: scale by processes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from salad.errors import SaladError

DURATIONS = "durations.onnx"


def content_hash(files: Iterable[Path]) -> str:
    """The first 8 hex digits of SHA-256 over the files' bytes, in the order of their names; neither folder nor path count."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:8]


def weights(folder: Path) -> list[Path]:
    """The models of a folder, without the copies that have the durations as an output."""
    return sorted(path for path in folder.glob("*.onnx") if not path.name.endswith(DURATIONS))


class OnnxModel:
    """`path`: an ONNX file; beside it `<stem>.durations.onnx` is taken instead where it is there.

    `has_durations`: whether the frames of each phoneme are known. Raises SaladError, in one line, where the extra is
    missing or the file is no model."""

    def __init__(self, path: Path):
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise SaladError(f"{path.name} needs onnxruntime and onnx: pip install 'salad-workbench[onnx]'") from error
        ready = path.with_name(f"{path.stem}.{DURATIONS}")
        source = ready if ready.is_file() else path
        try:
            model = onnx.load(str(source))
            self._durations = _with_durations(model)
            self._noises = _noise_as_inputs(model)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # protobuf's, onnx's and onnxruntime's have no common class
            raise SaladError(f"{source} is no ONNX model that runs here: {str(error).strip().splitlines()[0][:200]}") from error
        self.inputs = {node.name: node for node in self._session.get_inputs()}
        self.has_durations = self._durations is not None
        self._sound = next(node.name for node in self._session.get_outputs() if node.name != self._durations)

    def run(self, feed: dict[str, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(samples float32 [T], frames of each phoneme float32 [N] or None). The same feed and seed give the same."""
        wanted = [self._sound] + ([self._durations] if self.has_durations else [])
        size = 1 << 18
        while True:
            noise = {
                name: np.random.default_rng([seed, number]).standard_normal(size, dtype=np.float32)
                for number, name in enumerate(self._noises)
            }
            try:
                outputs = self._session.run(wanted, {**feed, **noise})
                break
            except Exception as error:  # more noise was needed than was drawn; a longer draw begins with the same numbers
                if not self._noises or "Reshape" not in str(error) or size > 1 << 26:
                    raise SaladError(f"the voice's model fails: {str(error).strip().splitlines()[0][:200]}") from error
                size *= 4
        return outputs[0].reshape(-1).astype(np.float32), outputs[1].reshape(-1) if self.has_durations else None


def _with_durations(model) -> str | None:
    """The output that holds the frames of each phoneme, added where the graph computes them (the one rounding of the
    durations: VITS's Ceil, StyleTTS 2's Round and Clip)."""
    graph = model.graph
    if len(graph.output) > 1:
        return graph.output[1].name
    ceils = [node for node in graph.node if node.op_type == "Ceil"]
    rounded = {node.output[0] for node in graph.node if node.op_type == "Round"}
    clipped = [node for node in graph.node if node.op_type == "Clip" and node.input[0] in rounded]
    for candidates in (ceils, clipped):
        if len(candidates) == 1:
            import onnx

            graph.output.append(onnx.ValueInfoProto(name=candidates[0].output[0]))
            return candidates[0].output[0]
    return None


def _noise_as_inputs(model) -> list[str]:
    """Every random node of the graph is replaced by as many numbers of an input (float [size]) as it needs: onnxruntime's
    own generator goes on from run to run, so that an utterance would depend on those before."""
    from onnx import TensorProto, helper

    names: list[str] = []
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "RandomNormalLike"]:
        name, tag = f"noise_{len(names)}", f"salad_noise_{len(names)}"
        attributes = {field.name: field.f for field in node.attribute}
        mean, scale = attributes.get("mean", 0.0), attributes.get("scale", 1.0)
        constants = {"zero": [0], "axis": [0]}
        for key, value in constants.items():
            graph.initializer.append(helper.make_tensor(f"{tag}_{key}", TensorProto.INT64, [1], value))
        for key, value in (("scale", scale), ("mean", mean)):
            graph.initializer.append(helper.make_tensor(f"{tag}_{key}", TensorProto.FLOAT, [1], [value]))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{tag}_size"]))
        made = [
            helper.make_node("Shape", [node.input[0]], [f"{tag}_shape"]),
            helper.make_node("ReduceProd", [f"{tag}_shape"], [f"{tag}_count"], keepdims=1),
            helper.make_node("Slice", [name, f"{tag}_zero", f"{tag}_count", f"{tag}_axis"], [f"{tag}_cut"]),
            helper.make_node("Mul", [f"{tag}_cut", f"{tag}_scale"], [f"{tag}_scaled"]),
            helper.make_node("Add", [f"{tag}_scaled", f"{tag}_mean"], [f"{tag}_moved"]),
            helper.make_node("Reshape", [f"{tag}_moved", f"{tag}_shape"], [node.output[0]]),
        ]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, field in enumerate(made):
            graph.node.insert(place + offset, field)
        names.append(name)
    return names
