"""The pages as Jinja2 templates, and their style."""
