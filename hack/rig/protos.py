"""Compile the containerd message definitions into the one descriptor file that the engine loads at run time.

    hack/protos           write controller/perdure/engine/containerd/containerd.binpb
    hack/protos --check   say with the exit code whether that file is what the definitions give

No code is generated: generated modules demand the protobuf version they were made with, a descriptor set does not.
Needs grpcio-tools (requirements/dev.lock).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ENGINE = Path(__file__).resolve().parents[2] / "controller" / "perdure" / "engine" / "containerd"
TARGET = ENGINE / "containerd.binpb"


def compiled() -> FileDescriptorSet:
    """The definitions and Google's well-known types, without comments and source positions."""
    sources = sorted((ENGINE / "protos").glob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set.binpb"
        arguments = [
            "protoc",
            f"-I{ENGINE / 'protos'}",
            f"-I{well_known}",
            "--include_imports",
            f"--descriptor_set_out={out}",
            *(str(source) for source in sources),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("hack/protos: protoc refused the definitions; see above")
        return FileDescriptorSet.FromString(out.read_bytes())


def stored() -> FileDescriptorSet | None:
    """What the package holds now."""
    try:
        return FileDescriptorSet.FromString(TARGET.read_bytes())
    except FileNotFoundError:
        return None


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile the containerd message definitions.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    fresh = compiled()
    if arguments.check:
        same = fresh == stored()
        if not same:
            print("containerd.binpb is not what protos/ gives; run hack/protos", file=sys.stderr)
        return 0 if same else 1
    TARGET.write_bytes(fresh.SerializeToString(deterministic=True))
    print(f"{TARGET.name}: {len(fresh.file)} files, {TARGET.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
