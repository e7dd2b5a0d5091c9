"""Print the oldest version of each package that mpickpt works with, as constraints for pip.

The tools of the tests are not among them: those only have to exist.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
optional = [text for name in ("jobs", "report", "netcdf", "xarray") for text in extras[name]]
for text in (*project["dependencies"], *optional):
    name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", text).groups()
    print(f"{name}=={version}")
print("pyparsing<3.3")  # newer ones warn of names by which older matplotlib calls them
