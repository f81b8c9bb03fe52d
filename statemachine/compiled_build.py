"""`python -m statemachine.compiled_build`: compile the rules with mypyc. It needs mypy, setuptools and a C compiler."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from statemachine.compiled import HOT, MANIFEST, SOURCES, fingerprint, folder, unusable

GROUP = "tiebreak_engine"


def build(target: Path) -> None:
    """Compile into a new folder that takes the old one's place. Changes the current folder."""
    # A checkout without the tools can run everything else.
    from mypyc.build import mypycify  # noqa: PLC0415
    from setuptools import Distribution  # type: ignore[import-untyped]  # noqa: PLC0415

    made_of = fingerprint()
    os.chdir(SOURCES.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.name) as root:
        fresh = Path(root) / "fresh"
        paths = [f"statemachine/{name.replace('.', '/')}.py" for name in HOT]
        options = ["--config-file=", "--strict", "--follow-imports=silent", f"--cache-dir={root}/cache"]
        extensions = mypycify([*options, *paths], opt_level="3", target_dir=f"{root}/c", group_name=GROUP)
        compiler = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
        compiler.build_lib, compiler.build_temp = str(fresh), f"{root}/o"
        compiler.ensure_finalized()
        compiler.run()
        modules = {
            ".".join((*file.relative_to(fresh).parent.parts, file.name.split(".")[0])): str(file.relative_to(fresh))
            for file in sorted(fresh.rglob("*.so"))
        }
        (fresh / MANIFEST).write_text(json.dumps({"fingerprint": made_of, "modules": modules}, indent=1), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    if unusable():
        build(folder())
    sys.stdout.write(f"{folder()}\n")
