"""nginx, and the example of a deployment in examples/deploy."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support import ROOT

DEPLOY = ROOT / "examples" / "deploy"
ORIGIN = "https://www.example.com"

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""The folders of servers: /usr/sbin is not on every PATH."""

NGINX = shutil.which("nginx", path=PATH)

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is missing (on Debian: apt install nginx)")
