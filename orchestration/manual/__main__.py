"""`python -m orchestration.manual DOCS`: write the generated pages; `make docs` does it before it builds the manual."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.manual.pages import write_pages

if __name__ == "__main__":
    for page in write_pages(Path(sys.argv[1])):
        print(page)
