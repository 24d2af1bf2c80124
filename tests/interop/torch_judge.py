"""PyTorch as the judge of files: reads and writes with torch alone what a test hands over as plain bytes.

    python3 torch_judge.py dump FILE.pt OUT.safetensors       every tensor of a file of torch.save, strictly
    python3 torch_judge.py folder DIR OUT.safetensors         every tensor of a universal folder of DeepSpeed
    python3 torch_judge.py safetensors FILE OUT.safetensors   as the safetensors package reads it
    python3 torch_judge.py save IN.safetensors FILE.pt HOW    with torch.save: plain, turned (not contiguous), or
                                                              module (an OrderedDict of parameters, with _metadata)

Several commands may follow one another, with "--" between them. Nested dicts give names "model/wte". Run by whichever Python has torch; exit status 77 if this one lacks it.
"""
import collections
import os
import sys

try:
    import torch
except ImportError:
    sys.exit(77)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
import safetensors as plain  # pylint: disable=wrong-import-position

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
TORCH = {name: dtype for dtype, name in DTYPES.items()}


def to_plain(tensor):
    tensor = tensor.detach().cpu().contiguous()
    data = bytes(tensor.view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
    return plain.Tensor(DTYPES[tensor.dtype], tuple(tensor.shape), data)


def from_plain(tensor):
    data = torch.frombuffer(bytearray(tensor.data), dtype=TORCH[tensor.dtype]) if tensor.data else torch.empty(0)
    return data.reshape(tensor.shape)


def load(path):
    """With everything that torch has against bad files: only tensors, and mapped (from 2.1 on)."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 1):
        return torch.load(path, weights_only=True)
    return torch.load(path, weights_only=True, mmap=True)


def flatten(value, name, out):
    if isinstance(value, dict):
        for key, inner in value.items():
            flatten(inner, "%s/%s" % (name, key) if name else str(key), out)
    elif torch.is_tensor(value):
        out[name] = to_plain(value)


def dump(path, to):
    out = {}
    flatten(load(path), "", out)
    plain.write(to, out)


def folder(path, to):
    out = {}
    for root, _, files in os.walk(path):
        for file in files:
            if file.endswith(".pt"):
                full = os.path.join(root, file)
                flatten(load(full), os.path.relpath(full, path)[:-len(".pt")], out)
    plain.write(to, out)


def with_package(path, to):
    here = sys.path.pop(0)
    del sys.modules["safetensors"]
    from safetensors.torch import load_file  # pylint: disable=import-outside-toplevel,import-error
    sys.path.insert(0, here)
    plain.write(to, {name: to_plain(t) for name, t in load_file(path).items()})


def save(source, path, how):
    tensors = {name: from_plain(t) for name, t in plain.read(source)[0].items()}
    if how == "turned":
        tensors = {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in tensors.items()}
    if how == "module":
        tensors = collections.OrderedDict((n, torch.nn.Parameter(t)) for n, t in tensors.items())
        tensors._metadata = collections.OrderedDict([("", {"version": 1})])
    torch.save(tensors, path)


if __name__ == "__main__":
    command = []
    for arg in [*sys.argv[1:], "--"]:
        if arg != "--":
            command.append(arg)
            continue
        {"dump": dump, "folder": folder, "safetensors": with_package, "save": save}[command[0]](*command[1:])
        command = []
