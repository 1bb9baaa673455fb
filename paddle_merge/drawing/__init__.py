"""Draw charts and write pages for people: inline SVG, HTML that needs no network, no scripts and no other files, and
Markdown."""
