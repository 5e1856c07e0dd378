"""Tables and pages as HTML. Every value goes through jinja2's autoescape."""
