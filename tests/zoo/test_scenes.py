"""The shipped text-to-image model of scenes: a folder that plain diffusers opens, as good as its
card says; and what its parts are trained by.
"""

from __future__ import annotations
