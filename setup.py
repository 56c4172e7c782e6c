"""Build the wheel with `recipes/` and `data/toy` inside the package; all else is in pyproject.toml.

`llm_wrapper.recipe.files.shipped_folder` finds them there. A checkout keeps them where they are.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "data/toy")


class BuildWithShipped(build_py):
    """Copies the shipped files beside the modules."""

    def run(self) -> None:
        """Build the modules, then copy; a file that is gone must not stay from an earlier build."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "llm_wrapper" / "_shipped"
        shutil.rmtree(target, ignore_errors=True)
        for name in SHIPPED:
            shutil.copytree(name, target / name)


setup(cmdclass={"build_py": BuildWithShipped})
