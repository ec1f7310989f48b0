"""
Turns the protos into committed Python, and checks them: lint, breaking changes, freshness.

    python proto/generate.py             write fermion/api and buf
    python proto/generate.py --check     fail where what is committed is stale, unclean or breaking
    python proto/generate.py --release   make today's descriptors the base of the breaking check

Needs no network. `buf` lints the image that protoc writes; the rules of protovalidate come out of
the installed package, since no package ships `buf/validate/validate.proto` itself.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
RELEASED = PROTO / "released.binpb"
EXCEPTIONS = PROTO / "breaking-exceptions.txt"
BUF = Path(sys.executable).with_name("buf")
RULES = "buf/validate/validate.proto"


def sources() -> list[str]:
    """Every proto of ours, relative to proto/."""
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def rules(folder: Path) -> Path:
    """Write the descriptor set that holds protovalidate's rules and what they import."""
    found = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    found.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    path = folder / "rules.binpb"
    path.write_bytes(found.SerializeToString(deterministic=True))
    return path


def compile_protos(folder: Path, *arguments: str, files: list[str]) -> None:
    """Run protoc; a fault ends the program with what protoc said."""
    code = protoc.main(
        ["protoc", f"-I{PROTO}", f"--descriptor_set_in={rules(folder)}", *arguments, *files]
    )
    if code != 0:
        sys.exit(code)


def image(folder: Path) -> Path:
    """Write the image that buf reads: our protos with everything they import."""
    path = folder / "image.binpb"
    compile_protos(
        folder,
        f"--descriptor_set_out={path}",
        "--include_imports",
        "--include_source_info",
        files=sources(),
    )
    return path


def generate(folder: Path) -> None:
    """Write all Python below a folder, as it stands in the tree."""
    with tempfile.TemporaryDirectory() as scratch:
        out = [f"--python_out={folder}", f"--mypy_out=quiet:{folder}"]
        services = [name for name in sources() if "\nservice " in (PROTO / name).read_text()]
        compile_protos(Path(scratch), *out, files=[*sources(), RULES])
        compile_protos(
            Path(scratch),
            f"--grpc_python_out={folder}",
            f"--mypy_grpc_out=quiet:{folder}",
            files=services,
        )
    for package in sorted({path.parent for path in folder.rglob("*_pb2.py")}):
        for parent in (package, *package.parents):
            if parent in (folder, folder / "fermion"):
                break
            (parent / "__init__.py").touch()
        if package.name == "v1":
            (package / "__init__.py").write_text(exports(package, folder))


def exports(package: Path, folder: Path) -> str:
    """Say the names of an area: messages, enums and extensions, never the stubs that need grpc."""
    module = ".".join(package.relative_to(folder).parts)
    taken: set[str] = set()
    lines = [f'"""Messages of `{module}`; generated, do not edit."""', ""]
    names: list[str] = []
    for stub in sorted(package.glob("*_pb2.pyi")):
        text = stub.read_text()
        found = re.findall(r"^(?:class )?([A-Za-z]\w*)(?:\(|: )", text, re.MULTILINE)
        own = sorted(
            name
            for name in set(found)
            if name != "DESCRIPTOR"
            and not name.startswith(("Global___", "_"))
            and not name.endswith("EnumTypeWrapper")
            and name not in taken
            and name not in ("if", "else", "import", "from")
        )
        if own:
            taken.update(own)
            names.extend(own)
            lines += [f"from {module}.{stub.stem} import (", *(f"    {name}," for name in own), ")"]
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in sorted(names)), "]", ""]
    return "\n".join(lines)


def write() -> None:
    """Replace what is committed."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for part in ("fermion/api", "buf"):
            shutil.rmtree(ROOT / part, ignore_errors=True)
            shutil.copytree(Path(scratch) / part, ROOT / part)
    print(f"generated Python of {len(sources())} protos")


def stale() -> list[str]:
    """Name generated files that are not what the protos say."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        found = []
        for part in ("fermion/api", "buf"):
            fresh = {p.relative_to(scratch) for p in (Path(scratch) / part).rglob("*.py*")}
            there = {
                p.relative_to(ROOT)
                for p in (ROOT / part).rglob("*.py*")
                if "__pycache__" not in p.parts
            }
            found += [str(path) for path in fresh ^ there]
            found += [
                str(path)
                for path in fresh & there
                if not filecmp.cmp(Path(scratch) / path, ROOT / path, shallow=False)
            ]
        return sorted(found)


def lint(picture: Path) -> list[str]:
    """What buf's linter says of our packages."""
    done = subprocess.run(
        [BUF, "lint", str(picture), "--path", "fermion", "--config", str(ROOT / "buf.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr).splitlines()


def breaking(picture: Path) -> list[str]:
    """What buf finds broken against the descriptors of what landed last, exceptions taken out."""
    if not RELEASED.exists():
        print("no released descriptors yet: nothing can break")
        return []
    done = subprocess.run(
        [
            BUF,
            "breaking",
            str(picture),
            "--against",
            str(RELEASED),
            "--path",
            "fermion",
            "--config",
            str(ROOT / "buf.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    allowed = [
        line.split("#")[0].strip()
        for line in EXCEPTIONS.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = (done.stdout + done.stderr).splitlines()
    unused = [part for part in allowed if not any(part in line for line in found)]
    return [
        *(line for line in found if not any(part in line for part in allowed)),
        *(f"{EXCEPTIONS.name}: {part!r} excuses nothing any more; take it out" for part in unused),
    ]


def check() -> int:
    """Print every fault; 1 where there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = image(Path(scratch))
        faults = [*lint(picture), *breaking(picture)]
    faults += [f"{path} is stale: run make generate" for path in stale()]
    for fault in faults:
        print(fault)
    print(f"protos: {len(sources())} files, {len(faults)} faults")
    return 1 if faults else 0


def release() -> None:
    """Keep today's descriptors as the base of the breaking check."""
    with tempfile.TemporaryDirectory() as scratch:
        found = descriptor_pb2.FileDescriptorSet.FromString(image(Path(scratch)).read_bytes())
    for file in found.file:
        file.ClearField("source_code_info")
    RELEASED.write_bytes(found.SerializeToString(deterministic=True))
    print(f"{RELEASED.name} holds {len(found.file)} files")


if __name__ == "__main__":
    # protoc looks its plugins up on the PATH.
    os.environ["PATH"] = f"{BUF.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    match sys.argv[1:]:
        case []:
            write()
        case ["--check"]:
            sys.exit(check())
        case ["--release"]:
            release()
        case _:
            sys.exit(__doc__)
