"""Safetensors checkpoints with nothing but NumPy: every dtype decoded and encoded here, by bit arithmetic.

The `safetensors` package hands NumPy no bfloat16 and no 8-bit floats, so the container is read and written directly.
That also makes these scripts independent of the reader that merganser uses.
"""

import json
import math
import os

import numpy as np

# Storage type of each safetensors dtype. The three that NumPy lacks are kept as unsigned integers.
STORAGE = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# What recipes call them.
RECIPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
                "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def fp8_table(dtype):
    """The value of each of the 256 codes of an 8-bit float, as float64."""
    codes = np.arange(256)
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if dtype == "F8_E4M3" else (5, 2, 15)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - float(bias)))
    if dtype == "F8_E4M3":  # the "fn" form: no infinities, one NaN code a sign
        value[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        value[top & (mantissa == 0)] = np.inf
        value[top & (mantissa != 0)] = np.nan
    return sign * value


FP8 = {name: fp8_table(name) for name in ("F8_E4M3", "F8_E5M2")}


def decode(raw, dtype):
    """Stored numbers as floats: F64 stays float64, every other float dtype widens exactly to float32."""
    if dtype == "BF16":
        wide = np.atleast_1d(raw).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(raw.shape)
    if dtype in FP8:
        return FP8[dtype][raw].astype(np.float32)
    return raw.astype(np.float64 if dtype == "F64" else np.float32)


def encode(values, dtype):
    """Floats rounded once, to nearest even, to what `dtype` stores."""
    values = np.asarray(values)
    if dtype == "BF16":
        return encode_bf16(values)
    if dtype in FP8:
        return encode_fp8(values, dtype)
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def encode_bf16(values):
    """float32 or float64 to bfloat16 codes. From float64 by way of round-to-odd float32, so that it rounds only once."""
    if values.dtype == np.float64:
        narrow = values.astype(np.float32)
        bits = narrow.view(np.uint32)
        # Round to odd: an inexact result keeps a sticky low bit, which the second rounding then sees. Where the
        # nearest float32 is larger in magnitude, step back towards zero first.
        inexact = (narrow.astype(np.float64) != values) & np.isfinite(narrow)
        away = inexact & (np.abs(narrow.astype(np.float64)) > np.abs(values))
        bits = np.where(away, bits - 1, bits)
        bits = np.where(inexact, bits | 1, bits).astype(np.uint32)
    else:
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def encode_fp8(values, dtype):
    """Floats to 8-bit codes; beyond the largest finite value by half a step or more: infinity (E5M2) or NaN (E4M3)."""
    table = FP8[dtype]
    overflow = 0x7C if dtype == "F8_E5M2" else 0x7F
    finite = table[:overflow]
    magnitude = np.abs(values.astype(np.float64))
    step = finite[-1] - finite[-2]
    middles = np.append((finite[:-1] + finite[1:]) / 2, finite[-1] + step / 2)
    code = np.searchsorted(middles, magnitude, side="left")
    # On a middle `left` gives the lower code: go up where that one is odd.
    on_middle = (code < len(middles)) & (magnitude == middles[np.minimum(code, len(middles) - 1)])
    code = np.where(on_middle & (code % 2 == 1), code + 1, code)
    code = np.where(np.isnan(magnitude), 0x7F, np.minimum(code, overflow))
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


class Checkpoint:
    """A checkpoint read lazily: a safetensors file, or a folder that holds one, or shards with an index."""

    def __init__(self, path):
        self.path = str(path)
        self.tensors = {}  # name -> (file, dtype, shape, first byte), in file order
        self.metadata = {}
        self._maps = {}
        for file in self._files():
            self._read_header(file)

    def _files(self):
        if os.path.isfile(self.path):
            return [self.path]
        single = os.path.join(self.path, "model.safetensors")
        if os.path.isfile(single):
            return [single]
        with open(single + ".index.json", encoding="utf-8") as handle:
            shards = set(json.load(handle)["weight_map"].values())
        return [os.path.join(self.path, shard) for shard in sorted(shards)]

    def _read_header(self, file):
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        self.metadata |= header.pop("__metadata__", None) or {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if name in self.tensors:
                raise ValueError(f"{self.path}: tensor {name} occurs twice")
            if end - begin != math.prod(shape) * STORAGE[entry["dtype"]].itemsize:
                raise ValueError(f"{file}: tensor {name} has {end - begin} bytes, not what its shape needs")
            self.tensors[name] = (file, entry["dtype"], shape, 8 + length + begin)

    def __iter__(self):
        return iter(self.tensors)

    def __contains__(self, name):
        return name in self.tensors

    def dtype(self, name):
        return self.tensors[name][1]

    def shape(self, name):
        return self.tensors[name][2]

    def is_float(self, name):
        return self.dtype(name) in FLOATS

    def raw(self, name):
        """The stored numbers, as a read-only array of the storage type."""
        file, dtype, shape, begin = self.tensors[name]
        if file not in self._maps:
            self._maps[file] = np.memmap(file, np.uint8, "r")
        size = math.prod(shape) * STORAGE[dtype].itemsize
        # A tensor may begin at any byte: copy, which also aligns it.
        return np.frombuffer(self._maps[file][begin : begin + size].tobytes(), STORAGE[dtype]).reshape(shape)

    def float32(self, name):
        """The tensor as merganser computes with it: float32 (F64 is narrowed)."""
        return decode(self.raw(name), self.dtype(name)).astype(np.float32)

    def float64(self, name):
        """The tensor's exact values."""
        return decode(self.raw(name), self.dtype(name)).astype(np.float64)


def load_floats(path):
    """{name: float32 array} of all floating tensors of a checkpoint."""
    checkpoint = Checkpoint(path)
    return {name: checkpoint.float32(name) for name in checkpoint if checkpoint.is_float(name)}


class Writer:
    """Writes one safetensors file whose layout is known beforehand; the data may come in pieces, in order."""

    def __init__(self, file, layout, metadata=None, alignment=8):
        header = {"__metadata__": metadata or {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in layout.items():
            size = math.prod(shape) * STORAGE[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % alignment)
        self.data_bytes = offset
        self._written = 0
        self._handle = open(file, "wb")
        self._handle.write(len(text).to_bytes(8, "little") + text)

    def write(self, raw):
        data = np.ascontiguousarray(raw)
        self._handle.write(memoryview(data.reshape(-1)).cast("B") if data.size else b"")
        self._written += data.nbytes

    def leave_holes(self):
        """Ends the file without data: it has its full size, takes no space and reads as zeros."""
        self._handle.truncate(self._handle.tell() + self.data_bytes)
        self._handle.close()

    def close(self):
        self._handle.close()
        if self._written != self.data_bytes:
            raise ValueError(f"{self._handle.name}: {self._written} bytes written, {self.data_bytes} announced")


def save(file, tensors, metadata=None):
    """Writes {name: (dtype, storage array)}, widest numbers first so that every tensor is aligned."""
    names = sorted(tensors, key=lambda name: -STORAGE[tensors[name][0]].itemsize)
    writer = Writer(file, {name: (tensors[name][0], tensors[name][1].shape) for name in names}, metadata)
    for name in names:
        dtype, raw = tensors[name]
        writer.write(np.asarray(raw, dtype=STORAGE[dtype]))
    writer.close()


def plan_shards(layout, shard_bytes):
    """Splits an ordered {name: (dtype, shape)} into files: [(file name, part of the layout)]."""
    parts, size = [{}], 0
    for name, (dtype, shape) in layout.items():
        nbytes = math.prod(shape) * STORAGE[dtype].itemsize
        if parts[-1] and shard_bytes and size + nbytes > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = (dtype, shape)
        size += nbytes
    if len(parts) == 1:
        return [("model.safetensors", parts[0])]
    return [(f"model-{i:05}-of-{len(parts):05}.safetensors", part) for i, part in enumerate(parts, 1)]


def write_index(folder, shards):
    """Writes `model.safetensors.index.json` where there is more than one shard."""
    if len(shards) == 1:
        return
    total = sum(math.prod(shape) * STORAGE[dtype].itemsize for _, part in shards for dtype, shape in part.values())
    weight_map = {name: file for file, part in shards for name in part}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as handle:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, handle, indent=2)


def parse_size(text):
    """`512MiB`, `5GB`, `1000` … as bytes."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    digits = text.rstrip("BKMGTIbkmgti ")
    unit = text[len(digits):].strip().upper()
    if unit not in units:
        raise ValueError(f"not a size: {text}")
    return int(float(digits) * units[unit])
