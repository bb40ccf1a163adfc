"""The report as one page that stands alone: what it shows, and the template that shows it."""

from irprune.api.page.collect import collect
from irprune.api.page.render import render, render_diff

__all__ = ["collect", "render", "render_diff"]
