"""A small, strict reader of safetensors and .npy files, independent of Sherd's own."""
import json
import math
import struct

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Tensor:
    """One tensor: dtype, shape, and its bytes, little-endian and row-major."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, tuple(shape), bytes(data)

    def __eq__(self, other):
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)

    def floats(self):
        count = len(self.data) // BYTES[self.dtype]
        if self.dtype == "BF16":
            return [struct.unpack("<f", b"\0\0" + self.data[i:i + 2])[0] for i in range(0, len(self.data), 2)]
        return list(struct.unpack("<%d%s" % (count, {"F32": "f", "F64": "d", "F16": "e", "I64": "q"}[self.dtype]),
                                  self.data))


def _no_duplicates(pairs):
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise ValueError("duplicate keys")
    return dict(pairs)


def read(path):
    """{name: Tensor}, and the metadata. ValueError on anything that strict readers refuse."""
    with open(path, "rb") as f:
        data = f.read()
    (size,) = struct.unpack("<Q", data[:8])
    if not 0 < size <= min(25_000_000, len(data) - 8):
        raise ValueError("a header of %d bytes" % size)
    header = json.loads(data[8:8 + size].decode("utf-8"), object_pairs_hook=_no_duplicates)
    metadata = header.pop("__metadata__", {})
    body, end, tensors = data[8 + size:], 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end or stop - begin != math.prod(entry["shape"]) * BYTES[entry["dtype"]]:
            raise ValueError("%s lies at %d..%d" % (name, begin, stop))
        tensors[name] = Tensor(entry["dtype"], entry["shape"], body[begin:stop])
        end = stop
    if end != len(body):
        raise ValueError("%d bytes after the last tensor" % (len(body) - end))
    return tensors, metadata


def write(path, tensors, header=None):
    """Writes {name: Tensor}; `header`, if given, replaces the JSON that belongs to them."""
    if header is None:
        entries, end = {}, 0
        for name, t in tensors.items():
            entries[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [end, end + len(t.data)]}
            end += len(t.data)
        header = json.dumps(entries).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for t in tensors.values():
            f.write(t.data)


def read_npy(path):
    """The Tensor in a .npy file of floats (version 1 or 2, C order)."""
    with open(path, "rb") as f:
        data = f.read()
    if data[:6] != b"\x93NUMPY":
        raise ValueError("no .npy file")
    wide = data[6] > 1
    (size,) = struct.unpack("<I" if wide else "<H", data[8:12 if wide else 10])
    at = 12 if wide else 10
    # The header is a Python literal.
    header = json.loads(data[at:at + size].decode("latin1").strip().rstrip("}").rstrip(", ").replace("'", '"')
                        .replace("False", "false").replace("True", "true").replace("(", "[").replace(",)", "]")
                        .replace(")", "]") + "}")
    if header["fortran_order"]:
        raise ValueError("Fortran order")
    dtype = {"<f4": "F32", "<f8": "F64", "<f2": "F16"}[header["descr"]]
    return Tensor(dtype, header["shape"], data[at + size:])
