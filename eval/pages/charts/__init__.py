"""The charts of the page: their axes, their lines in pixels, and what each shows."""
